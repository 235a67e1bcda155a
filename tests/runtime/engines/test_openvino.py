"""What is particular to OpenVINO: 16-bit sites that clip as they are written, and no word to anyone about being used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quad.core.encoding import Encoding
from quad.core.errors import BackendError
from quad.runtime.engines.engine import open_engine
from tests.runtime.tiny_unet import save_graph, value

CODE = """
import sys
from pathlib import Path
from quad.runtime.engines.engine import open_engine
session = open_engine("openvino", ("openvino",), "w8a16").load(Path(sys.argv[1]), 1)
print(session.threads, "openvino.tools.ovc" in sys.modules, bool(sys.modules["openvino_telemetry"]))
"""


def _one_site(path: Path, encoding: Encoding, weight: NDArray[np.float32]) -> None:
    """x -> Q -> DQ -> matmul."""
    constants = {"s": np.float32(encoding.scale[0]), "z": encoding.dtype.type(encoding.zero_point[0]), "w": weight}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    save_graph(path, "site", nodes, [value("x", [4, 64])], value("y", [4, 8]), constants)


@pytest.mark.parametrize(
    "encoding",
    [
        Encoding(bits=16, signed=False, symmetric=False, scale=(2 / 65535,), zero_point=(32768,)),
        Encoding(bits=16, signed=True, symmetric=True, scale=(1 / 32767,), zero_point=(0,)),
        Encoding(bits=8, signed=False, symmetric=False, scale=(2 / 255,), zero_point=(128,)),
        Encoding(bits=8, signed=True, symmetric=True, scale=(1 / 127,), zero_point=(0,)),
    ],
    ids=lambda e: f"{'int' if e.signed else 'uint'}{e.bits}",
)
def test_a_site_rounds_and_clips_as_written(encoding: Encoding, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 8)).astype(np.float32)
    x = (3 * rng.standard_normal((4, 64))).astype(np.float32)
    _one_site(tmp_path / "site/model.onnx", encoding, weight)
    found = open_engine("openvino", ("openvino",), "w8a16").load(tmp_path / "site/model.onnx", 1).run({"x": x})
    info = np.iinfo(encoding.dtype)
    steps = np.clip(np.rint(x / np.float32(encoding.scale[0])) + encoding.zero_point[0], info.min, info.max)
    expected = ((steps - encoding.zero_point[0]) * encoding.scale[0]) @ weight
    assert np.abs(x @ weight - expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=64 * encoding.scale[0] / 8)


def test_importing_it_reports_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """The package would write an id into the home directory and send it with a usage report."""
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", CODE, str(tiny_bundle / "unet/model.onnx")]
    done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "True", "False"]
    assert list(tmp_path.iterdir()) == []


def test_an_operator_it_does_not_know_is_one_line(tmp_path: Path) -> None:
    nodes = [helper.make_node("NoSuchThing", ["x"], ["y"], domain="nowhere")]
    graph = helper.make_graph(nodes, "site", [value("x", [1])], [value("y", [1], TensorProto.FLOAT)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("nowhere", 1)]
    path = tmp_path / "site/model.onnx"
    path.parent.mkdir()
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    with pytest.raises(BackendError, match=r"^engine openvino: cannot load .*NoSuchThing.*; choose --engine ort or build[^\n]*$"):
        open_engine("openvino", ("openvino",), "w8a16").load(path, 1)


STOPPED = """
import signal, sys
from pathlib import Path
from quad.runtime.engines.engine import open_engine
signals = []
signal.signal(signal.SIGTERM, lambda number, _frame: signals.append(number))
def load():
    return open_engine("openvino", ("openvino",), "w8a16").load(Path(sys.argv[1]), 1)
first = load()
second = load()
del first
del second
signal.raise_signal(signal.SIGTERM)
print(signals == [signal.SIGTERM])
"""


def test_a_signal_is_handled_after_sessions_are_released_in_any_order(tmp_path: Path) -> None:
    """In a process of its own, see ADR 21: where a signal stack is gone, the kernel ends the process."""
    encoding = Encoding(bits=8, signed=True, symmetric=True, scale=(1 / 127,), zero_point=(0,))
    _one_site(tmp_path / "site/model.onnx", encoding, np.ones((64, 8), np.float32))
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "site/model.onnx")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "True\n", "")
