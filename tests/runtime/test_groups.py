"""Groups of adapters in one bundle: the same pictures as from a bundle of each group's graph alone, and graphs that come and go."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from quad import QuadPipeline
from quad.core.digests import canonical_json
from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, VerificationError
from quad.core.manifest import AdapterManifest, Component, SizedGraphs
from quad.core.picture_size import PictureSize, graph_name
from quad.core.profile import GroupRanges
from quad.core.slots import UNET
from quad.runtime.bundle import COMPONENTS, open_bundle
from quad.runtime.engines.graph import Graph
from quad.runtime.machine import graph_bytes, plan_bytes
from tests.runtime.conftest import PROFILE, SLOTS

LOUD = "sketch"  # of the second group
SECOND = graph_name(UNET, None, 1)
COARSE = Encoding(bits=8, signed=False, symmetric=False, scale=(16 / 255,), zero_point=(128,))
GROUPED = msgspec.structs.replace(PROFILE, groups=(GroupRanges(encodings={UNET: {"mid.to_q.in": COARSE}}, mode="anchor", anchor=LOUD),))
PARTS = {name: Component(f"{name}/model.onnx") for name in COMPONENTS}
PARTS[UNET] = Component("unet/model.onnx", groups=(SizedGraphs("unet/loud.onnx"),))
Rewrite = Callable[..., None]


def _coarser(file: Path, to: Path) -> None:
    """The same graph with the second group's range at its activation."""
    model = onnx.load(file)
    for constant in model.graph.initializer:
        if constant.name == "as":
            constant.CopyFrom(numpy_helper.from_array(np.float32(COARSE.scale[0]), "as"))
        if constant.name == "az":
            constant.CopyFrom(numpy_helper.from_array(np.uint8(COARSE.zero_point[0]), "az"))
    onnx.save(model, to)


def _packed_for_groups(root: Path, profile: Any, group_of: dict[str, int]) -> None:
    """The profile, and adapters of its groups."""
    (root / "profile.json").write_bytes(canonical_json(profile))
    for file in root.glob("adapters/*/adapter.json"):
        manifest = msgspec.json.decode(file.read_bytes(), type=AdapterManifest)
        parents, group = {**manifest.parents, "profile": profile.digest}, group_of.get(manifest.name, msgspec.UNSET)
        file.write_bytes(canonical_json(msgspec.structs.replace(manifest, parents=parents, group=group)))


def _write(root: Path, rewrite: Rewrite, profile: Any = GROUPED, group_of: dict[str, int] | None = None, **changes: Any) -> Path:
    _packed_for_groups(root, profile, {LOUD: 1} if group_of is None else group_of)
    rewrite(root, **{"components": PARTS, "parents": {"base": "0" * 64, "slots": SLOTS.digest, "profile": profile.digest}, **changes})
    return root


@pytest.fixture
def grouped(tiny_bundle: Path, rewrite: Rewrite, tmp_path: Path) -> Path:
    """The tiny bundle with a second group."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "grouped"))
    _coarser(root / "unet/model.onnx", root / "unet/loud.onnx")
    return _write(root, rewrite)


@pytest.fixture
def coarse(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with the second group's graph alone; its digests are as they were."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "coarse"))
    _coarser(root / "unet/model.onnx", root / "unet/model.onnx")
    return root


def _pixels(pipe: QuadPipeline, **arguments: Any) -> NDArray[np.uint8]:
    return np.asarray(pipe("remove the car", task="text-to-image", **arguments).images[0])


def _is_loaded(graph: Graph) -> bool:
    return graph._session is not None


@pytest.mark.parametrize("memory", ["keep-all", "balanced", "minimal"])
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_every_adapter_runs_in_its_groups_graph(engine: str, memory: str, grouped: Path, tiny_bundle: Path, coarse: Path) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(engine, engine))
    pipes = [
        QuadPipeline.from_pretrained(path, engine=engine, threads=1, memory=memory, verify=path != coarse)
        for path in (grouped, tiny_bundle, coarse)
    ]
    pipe, fine, rough = pipes

    def expected(names: list[str], weights: list[float]) -> NDArray[np.uint8]:
        alone = rough if any(name == LOUD and weight for name, weight in zip(names, weights, strict=True)) else fine
        alone.set_adapters(names, weights=weights)
        return _pixels(alone)

    assert not np.array_equal(expected([LOUD], [1.0]), _pixels(fine))
    np.testing.assert_array_equal(_pixels(pipe), _pixels(fine))  # the base
    # There and back, a sum of both groups in the wider one, and one whose second part counts for nothing.
    cases: list[tuple[list[str], list[float]]] = [(["transform"], [1.0]), ([LOUD], [1.0]), (["transform"], [1.0])]
    cases += [(["transform", LOUD], [0.5, 0.25]), (["removal", LOUD], [1.0, 0.0])]
    for names, weights in cases:
        pipe.set_adapters(names, weights=weights)
        np.testing.assert_array_equal(_pixels(pipe), expected(names, weights))
        assert pipe.get_active_adapters() == names
    pipe.disable_lora()
    fine.disable_lora()
    np.testing.assert_array_equal(_pixels(pipe), _pixels(fine))
    loaded = {name for name in (UNET, SECOND) if _is_loaded(pipe.graph(name))}
    assert loaded == {"keep-all": {UNET, SECOND}, "balanced": {UNET}, "minimal": set()}[memory]


def test_a_pack_says_whose_group_it_is(grouped: Path, coarse: Path, tmp_path: Path) -> None:
    pack = Path(shutil.copytree(grouped / "adapters" / LOUD, tmp_path / "pack"))
    pipe, rough = QuadPipeline.from_pretrained(grouped, threads=1), QuadPipeline.from_pretrained(coarse, threads=1, verify=False)
    pipe.set_adapters(pipe.load_lora_weights(pack, adapter_name="another"))
    rough.set_adapters(LOUD)
    np.testing.assert_array_equal(_pixels(pipe), _pixels(rough))


def test_all_u_nets_count_where_all_stay_in_memory(grouped: Path) -> None:
    manifest = open_bundle(grouped).manifest
    sizes = graph_bytes(manifest)
    assert plan_bytes(manifest)["keep-all"] == sum(sizes.values()) + sizes[UNET]
    assert plan_bytes(manifest)["balanced"] == sizes[UNET] + max(size for name, size in sizes.items() if name != UNET)


SLOT, WEIGHT = SLOTS.slots[0].a_name, "mid.to_q.weight"


@pytest.mark.parametrize(
    ("profile", "components"),
    [
        (GROUPED, {**PARTS, UNET: Component("unet/model.onnx")}),  # a group without a graph
        (PROFILE, PARTS),  # a graph of no group
        (GROUPED, {**PARTS, "vae_decoder": Component("vae_decoder/model.onnx", groups=(SizedGraphs("unet/loud.onnx"),))}),
        (GROUPED, {**PARTS, UNET: Component("unet/model.onnx", groups=(SizedGraphs("unet/none.onnx"),))}),
        (GROUPED, {**PARTS, UNET: Component("unet/model.onnx", groups=(SizedGraphs("../loud.onnx"),))}),
        (GROUPED, {**PARTS, UNET: Component("unet/model.onnx", groups=(SizedGraphs("unet/loud.onnx", sizes={"8x8": PARTS[UNET]}),))}),
        *(
            (msgspec.structs.replace(PROFILE, groups=(GroupRanges(encodings={part: {name: COARSE}}, mode="anchor"),)), PARTS)
            for part, name in ((UNET, SLOT), (UNET, WEIGHT), ("text_encoder", "layer.in"))
        ),
    ],
)
def test_groups_that_do_not_hold_together(profile: Any, components: Any, grouped: Path, rewrite: Rewrite) -> None:
    QuadPipeline.from_pretrained(grouped, memory="minimal")
    _write(grouped, rewrite, profile, {}, components=components)
    with pytest.raises(VerificationError):
        QuadPipeline.from_pretrained(grouped, memory="minimal")


def test_an_adapter_of_a_group_that_is_not_there(grouped: Path, rewrite: Rewrite) -> None:
    _write(grouped, rewrite, group_of={LOUD: 2})
    with pytest.raises(CompatibilityError, match="adapter 'sketch': expected one of the 2 groups of bundle 'grouped', found number 3"):
        QuadPipeline.from_pretrained(grouped, memory="minimal")


def test_names_of_graphs_and_files() -> None:
    assert [graph_name(UNET, size, group) for size in (None, PictureSize(8, 16)) for group in (0, 1)] == [
        "unet", "unet.group-2", "unet.8x16", "unet.8x16.group-2"
    ]  # fmt: skip
