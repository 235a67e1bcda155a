"""A bundle's graphs are tried before it gets its name, each loaded once in the whole build, the U-Net's golden outputs taken on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quad.build.build import BuildRequest, BuildResult, build
from quad.build.smoke import SmokeFiles, of_groups, run_smoke
from quad.core.component_call import UNET_INPUTS, ComponentCall
from quad.core.errors import BackendError
from quad.core.manifest import PROBES_FILE
from quad.runtime.adapters.buffers import zero_buffers
from quad.runtime.adapters.packed import PackedAdapter
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import open_bundle
from quad.runtime.engines.memo import MemoEngine
from quad.runtime.engines.ort import OrtEngine, open_engine
from quad.runtime.golden_outputs import check_golden, unet_buffers
from tests.build.samples import SAMPLES

CALL = {name: np.ones(shape, np.float32) for name, shape in zip(UNET_INPUTS, [(1, 9, 4, 4), (1,), (1, 8, 16)], strict=True)}


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    return []


@pytest.fixture(scope="module")
def made(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, loaded: list[str]) -> BuildResult:
    load = OrtEngine.load

    def counted(engine: OrtEngine, model_file: Path, *more: Any) -> Any:
        loaded.append(model_file.parent.name)
        return load(engine, model_file, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrtEngine, "load", counted)
        return build(BuildRequest(model_dir, adapter_files, tmp_path_factory.mktemp("out") / "phone", samples=SAMPLES, precision="float"))


def test_a_build_loads_every_graph_once_and_takes_goldens(made: BuildResult, loaded: list[str]) -> None:
    assert sorted(loaded) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    bundle = open_bundle(made.bundle)
    session, store = open_engine("float").load(bundle.graph("unet"), 1), AdapterStore(bundle)
    assert set(made.smoke["unet"]) == {"base", *store.names}
    for name in store.names:
        assert store.manifest(name).golden is not msgspec.UNSET
        session.bind(unet_buffers(bundle, store.buffers(name)))
        check_golden(session, bundle, store.manifest(name))


def test_an_adapter_is_tried_in_its_own_groups_graph_and_the_base_in_each() -> None:
    graphs = ("unet", "text_encoder", "vae_decoder", "unet.8x16")
    sources = {graph: ("base",) if graph == "vae_decoder" else ("base", "quiet", "loud") for graph in graphs}
    calls = [ComponentCall(component=graph, source=source, inputs={}) for graph in graphs for source in sources[graph]]
    assert of_groups(calls, {"quiet": 0, "loud": 0}, 1) == tuple(calls)
    grouped = [(call.component, call.source) for call in of_groups(calls, {"quiet": 0, "loud": 1}, 2)]
    assert grouped == [
        *(("unet", source) for source in ("base", "quiet")),
        *(("text_encoder", source) for source in ("base", "quiet", "loud")),
        ("vae_decoder", "base"),
        *(("unet.8x16", source) for source in ("base", "quiet")),
        *((graph, source) for graph in ("unet.group-2", "unet.8x16.group-2") for source in ("base", "loud")),
    ]


def test_a_golden_output_that_is_not_finite_is_refused(made: BuildResult, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(made.bundle)
    session = open_engine("float").load(bundle.graph("unet"), 1)
    session.bind(zero_buffers(bundle.slots.of("unet")))
    case = ComponentCall(source="base", inputs=CALL, expected=session.run(CALL))
    files = SmokeFiles(graphs={"unet": bundle.graph("unet")}, probes=bundle.path(PROBES_FILE))
    own = [PackedAdapter(name="ink", tensors={}, rank=1, source="source")]
    engine = MemoEngine(open_engine("float"))
    assert set(run_smoke(files, engine, "float", [case], bundle.slots, own).goldens) == {"ink"}
    monkeypatch.setattr("quad.build.smoke.calls_of", lambda _: ({**CALL, "sample": CALL["sample"] * np.float32(np.nan)},))
    with pytest.raises(BackendError, match=r"smoke run of unet, ink: expected an answer of finite numbers"):
        run_smoke(files, engine, "float", [case], bundle.slots, own)
