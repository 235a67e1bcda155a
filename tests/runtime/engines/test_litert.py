"""What is particular to LiteRT: graphs with ports that are files of their own kind, and a library that talks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from quad import QuadPipeline
from quad.core.digests import canonical_json
from quad.core.errors import BackendError, VerificationError
from quad.core.ports import Port, Ports
from quad.runtime import Request
from quad.runtime.engines.engine import Engine, open_engine

pytest.importorskip("ai_edge_litert")

CODE = """
import sys
from pathlib import Path
import numpy as np
from quad.runtime.engines.engine import open_engine
session = open_engine("litert", ("litert",), "w8a16").load(Path(sys.argv[1]), 1)
session.run({name: np.zeros(shape, "f4" if name in ("sample", "timestep", "encoder_hidden_states") else "i2")
             for name, shape in session.inputs.items()})
print("loaded", session.threads, sorted({"torch", "onnx", "tensorflow"} & sys.modules.keys()))
"""


@pytest.fixture
def engine() -> Engine:
    return open_engine("litert", ("litert",), "w8a16")


@pytest.fixture
def unet(litert_bundle: Path, tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(litert_bundle / "unet", tmp_path / "unet"))


def _pictures(bundle: Path, memory: str, requests: list[Request]) -> NDArray[np.int64]:
    pipe = QuadPipeline.from_pretrained(bundle, threads=1, memory=memory)
    return np.stack([np.asarray(answer.images[0], np.int64) for answer in pipe.generate(requests)])


def test_pictures_of_all_tasks_are_those_of_the_same_networks_elsewhere(
    litert_bundle: Path, tiny_bundle: Path, requests: list[Request]
) -> None:
    """Within what the 16-bit ends of its U-Net leave: one step of 255, two where several calls add up."""
    here, elsewhere = _pictures(litert_bundle, "keep-all", requests), _pictures(tiny_bundle, "keep-all", requests)
    assert np.abs(here - elsewhere).max() <= 2
    assert (here == elsewhere).mean() > 0.95
    assert np.array_equal(here, _pictures(litert_bundle, "minimal", requests))


def test_nothing_is_printed(litert_bundle: Path) -> None:
    """The library tells of its kernels on the file descriptor itself, where a progress bar may stand."""
    command = [sys.executable, "-c", CODE, str(litert_bundle / "unet/model.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("loaded 1 []\n", "")


def test_a_graph_without_ports_is_refused(engine: Engine, unet: Path) -> None:
    (unet / "ports.json").unlink()
    with pytest.raises(VerificationError, match=r"expected the graph's ports, found .*; build the bundle with --target litert$"):
        engine.load(unet / "model.tflite", 1)


def test_ports_of_another_graph_are_refused(engine: Engine, unet: Path) -> None:
    ports = msgspec.json.decode((unet / "ports.json").read_bytes(), type=Ports)
    for odd, given in (("depth", Ports({**ports.inputs, "depth": Port("int16")}, ports.outputs)), ("out_sample", Ports(ports.inputs, {}))):
        (unet / "ports.json").write_bytes(canonical_json(given))
        with pytest.raises(VerificationError, match=f"graph unet, ports.json: expected its inputs and its output, found {odd}"):
            engine.load(unet / "model.tflite", 1)


def test_a_file_that_was_cut_is_refused_in_one_line(engine: Engine, unet: Path) -> None:
    (unet / "model.tflite").write_bytes((unet / "model.tflite").read_bytes()[:16])
    with pytest.raises(BackendError, match=r"cannot load it \(.*\); build the bundle again with --target litert$"):
        engine.load(unet / "model.tflite", 1)
