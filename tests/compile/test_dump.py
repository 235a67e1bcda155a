"""`--dump-passes`: graphs that open by themselves, a census that adds up, whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quad.build.build import BuildRequest, build
from quad.compile.dump import CENSUS_FILE, dumping, observer_of
from quad.compile.passes import run_passes, unobserved
from quad.compile.placement.qdq import place_float
from quad.core.errors import InputError, UsageError
from tests.build.samples import SAMPLES

NAMES = ("split_heads", "linear_to_conv")


@pytest.fixture(scope="module")
def dump(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dump") / "passes"
    with dumping(directory) as made:
        observer = observer_of(made, "unet")
        observer("exported", tiny.graph)
        place_float(run_passes(tiny.graph.clone(), NAMES, observer), observer=observer)
    return directory


def test_the_census_is_that_of_the_files_and_adds_up(dump: Path, tiny: Any) -> None:
    steps = json.loads((dump / CENSUS_FILE).read_text())["components"]["unet"]
    assert [step["pass"] for step in steps][:4] == ["exported", *NAMES, "remove_sites"]
    counted: Counter[str] = Counter(steps[0]["operators"])
    assert counted["quad::Site"] == len(tiny.network.sites)
    for step in steps:
        counted.update(step["changed"])
        found = Counter(
            f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in onnx.load(dump / step["file"]).graph.node
        )
        assert found == step["operators"] == {op: count for op, count in counted.items() if count}
        assert sum(found.values()) == step["nodes"]
    assert not any("quad::Site" in step["operators"] for step in steps[3:])


def test_the_graphs_hold_their_weights_which_are_stored_once(dump: Path, tiny: Any) -> None:
    first = onnx.load(dump / "unet" / "00-exported.onnx")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in first.graph.initializer}
    for name, value in tiny.graph.graph.initializers.items():
        np.testing.assert_array_equal(stored[name], value.const_value.numpy())
    once = sum(array.nbytes for array in stored.values())
    assert (dump / "unet" / "weights.data").stat().st_size < 2.5 * once  # as exported, and as convolutions


def test_the_table_names_each_pass_and_what_it_changed(dump: Path) -> None:
    table = (dump / "census.md").read_text()
    assert "## unet" in table
    (line,) = [line for line in table.splitlines() if "| split_heads |" in line]
    assert "Split +" in line
    assert "Concat +" in line


def test_an_older_dump_is_replaced_and_anything_else_is_not_touched(tiny: Any, tmp_path: Path) -> None:
    place = tmp_path / "dump"
    for name in ("first", "second"):
        with dumping(place) as made:
            observer_of(made, "unet")(name, tiny.graph)
        assert [file.name for file in sorted((place / "unet").glob("*.onnx"))] == [f"00-{name}.onnx"]
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(InputError, match=r"mine: expected a new directory or one with census\.json, .* choose another --dump-passes"),
        dumping(other),
    ):
        pass
    assert (other / "thesis.txt").read_text() == "years of work"


def test_a_build_that_fails_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    def fail() -> None:
        with dumping(tmp_path / "dump") as made:
            observer_of(made, "unet")("exported", tiny.graph)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_build_dumps_every_component(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    request = BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="float", dump_passes=tmp_path / "dump")
    built = build(request)
    found = json.loads((tmp_path / "dump" / CENSUS_FILE).read_text())["components"]
    assert set(found) == {"unet", "text_encoder", "vae_encoder", "vae_decoder"}
    for component, steps in found.items():
        names = [step["pass"] for step in steps]
        assert names[0] == "exported"
        assert names.index("fold_weight_transpose") < names.index("remove_sites") < names.index("merge_constants")
        assert steps[-1]["nodes"] == built.placement["components"][component]["nodes"]


def test_a_dump_in_the_place_of_the_bundle_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dump-passes: expected a directory apart from that of -o"):
        build(BuildRequest(model_dir, {}, tmp_path / "phone", dump_passes=tmp_path / "phone"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"census\.json, found something else; choose another --dump-passes"):
        build(BuildRequest(model_dir, {}, tmp_path / "phone", dump_passes=tmp_path / "mine"))


def test_without_a_directory_nobody_looks() -> None:
    with dumping(None) as made:
        assert observer_of(made, "unet") is unobserved
