"""What is particular to Qualcomm's HTP: graphs of integers with their ports, and a vendor's library that talks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from quad.core.digests import canonical_json
from quad.core.errors import BackendError, VerificationError
from quad.core.ports import Port, Ports
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import open_bundle
from quad.runtime.engines.engine import Engine, open_engine
from tests.runtime.engines.test_engine import step_inputs
from tests.runtime.tiny_htp import ports

pytest.importorskip("onnxruntime_qnn")

CODE = """
import sys
from pathlib import Path
import numpy as np
from quad.runtime.engines.engine import open_engine
session = open_engine("qnn", ("qnn",), "w8a16").load(Path(sys.argv[1]), 1)
session.run({name: np.zeros(shape, "f4" if name in ("sample", "timestep", "encoder_hidden_states") else "i2")
             for name, shape in session.inputs.items()})
print("loaded", session.threads)
"""


@pytest.fixture
def engine() -> Engine:
    return open_engine("qnn", ("qnn",), "w8a16")


@pytest.fixture
def unet(htp_bundle: Path, tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(htp_bundle / "unet", tmp_path / "unet"))


def test_stdout_is_for_results_alone(htp_bundle: Path) -> None:
    """The vendor's library prints to the file descriptor when it loads; a program that reads our output would choke on it."""
    command = [sys.executable, "-c", CODE, str(htp_bundle / "unet/model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "loaded 1\n"


def test_a_graph_without_ports_is_refused(engine: Engine, unet: Path) -> None:
    (unet / "ports.json").unlink()
    says = r"unet/ports.json: expected the graph's ports, found .*No such file.*; build the bundle with --target qnn-htp$"
    with pytest.raises(VerificationError, match=says):
        engine.load(unet / "model.onnx", 1)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"inputs": [], "outputs": {}}'])
def test_ports_that_are_something_else_are_refused(engine: Engine, unet: Path, text: bytes) -> None:
    (unet / "ports.json").write_bytes(text)
    with pytest.raises(VerificationError, match="expected the graph's ports"):
        engine.load(unet / "model.onnx", 1)


@pytest.mark.parametrize(
    ("odd", "given"),
    [
        ("depth", Ports({**ports().inputs, "depth": Port("uint16")}, ports().outputs)),
        ("out_sample", Ports(ports().inputs, {})),
    ],
)
def test_ports_of_another_graph_are_refused(engine: Engine, unet: Path, odd: str, given: Ports) -> None:
    (unet / "ports.json").write_bytes(canonical_json(given))
    with pytest.raises(VerificationError, match=f"graph unet, ports.json: expected its inputs and its output, found {odd}"):
        engine.load(unet / "model.onnx", 1)


def test_a_binary_that_is_gone_is_one_line(engine: Engine, unet: Path) -> None:
    (unet / "model_qnn.bin").unlink()
    with pytest.raises(BackendError, match=r"^engine qnn: cannot load [^\n]*model.onnx [^\n]*; build the bundle for this chip[^\n]*$"):
        engine.load(unet / "model.onnx", 1)


def test_a_machine_without_the_chip_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    open_engine("qnn", ("qnn",), "w8a16")
    monkeypatch.setattr(ort, "get_ep_devices", list)
    says = "^engine qnn: expected a Qualcomm HTP or its emulator, found none on this machine; choose another --engine$"
    with pytest.raises(BackendError, match=says):
        open_engine("qnn", ("qnn",), "w8a16")


def test_ids_are_not_given_as_floats_nor_floats_as_integers(engine: Engine, htp_bundle: Path) -> None:
    """Either would be encoded without a word."""
    session = engine.load(htp_bundle / "unet/model.onnx", 1)
    session.bind(AdapterStore(open_bundle(htp_bundle)).zeros)
    step = step_inputs()
    for wrong in (step["sample"].astype(np.int32), step["sample"].astype(np.float64), step["sample"][0]):
        with pytest.raises(BackendError, match=r"graph unet, input sample: expected float32 \(1, 9, 4, 4\)"):
            session.run({**step, "sample": wrong})


def test_what_lies_beyond_a_port_clips(engine: Engine, htp_bundle: Path) -> None:
    session = engine.load(htp_bundle / "unet/model.onnx", 1)
    session.bind(AdapterStore(open_bundle(htp_bundle)).zeros)
    step, edge = step_inputs(), ports().inputs["timestep"].encoding
    assert edge is not None
    last = np.array([(edge.qmax - edge.zero_point[0]) * edge.scale[0]], np.float32)
    at_edge, beyond = (session.run({**step, "timestep": time}) for time in (last, last * 7))
    np.testing.assert_array_equal(at_edge, beyond)
    assert (session.run({**step, "timestep": last / 2}) != at_edge).any()


def test_the_ports_are_what_the_file_says(htp_bundle: Path) -> None:
    assert msgspec.json.decode((htp_bundle / "unet/ports.json").read_bytes(), type=Ports) == ports()


IN_TURN = """
import threading, time
from quad.runtime.engines.qnn import _stdout_to_stderr
inside = threading.Event()
def first():
    with _stdout_to_stderr():
        inside.set()
        time.sleep(0.3)
def second():
    inside.wait()
    with _stdout_to_stderr():
        time.sleep(0.6)
threads = [threading.Thread(target=work) for work in (first, second)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("kept")
"""


def test_threads_that_open_sessions_leave_stdout_as_it_was() -> None:
    """Overlapping, the second would put back what the first had put there: stderr, for ever."""
    done = subprocess.run([sys.executable, "-c", IN_TURN], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "kept\n"
