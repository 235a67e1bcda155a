"""What a frozen range cuts off is read right, on either side of it, and reading it keeps no activation in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from quad.admit.sites import has_sites, site_uses
from quad.core.encoding import Encoding

STEP = 0.5


def chain(path: Path, sites: int, encoding: Encoding, shape: tuple[int, ...]) -> Path:
    """`sample` through so many sites of one encoding, one behind the other, and its mean."""
    x = ir.Value(name="sample", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    numbers = {"scale": np.float32(encoding.scale[0]), "zero": encoding.dtype.type(encoding.zero_point[0]), "factor": np.float32(1)}
    scale, zero, factor = (ir.Value(name=name, const_value=ir.tensor(np.array(number), name=name)) for name, number in numbers.items())
    nodes, read = [], x
    for site in range(sites):
        nodes.append(ir.node("QuantizeLinear", [read, scale, zero], name=f"site{site}/Q"))
        nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], scale, zero]))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor]))
        read = nodes[-1].outputs[0]
    nodes.append(ir.node("ReduceMean", [read], {"keepdims": 0}))
    out = nodes[-1].outputs[0]
    out.name, out.dtype, out.shape = "out", ir.DataType.FLOAT, ir.Shape([])
    ir.save(ir.Model(ir.Graph([x], [out], nodes=nodes, initializers=[scale, zero, factor], opset_imports={"": 21}), ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("encoding", "low", "high"),
    [
        (Encoding(bits=8, signed=False, symmetric=False, scale=(STEP,), zero_point=(100,)), -100, 155),
        (Encoding(bits=8, signed=True, symmetric=True, scale=(STEP,), zero_point=(0,)), -128, 127),
        (Encoding(bits=16, signed=False, symmetric=False, scale=(STEP,), zero_point=(1000,)), -1000, 64535),
    ],
)
def test_what_a_range_cuts_off(encoding: Encoding, low: int, high: int, tmp_path: Path) -> None:
    model = chain(tmp_path / "model.onnx", 1, encoding, (1, 4))
    assert has_sites(model)
    # Half a step beyond either end is rounded to the end: nothing is lost.
    below, above = (low - 0.5) * STEP, (high + 0.5) * STEP

    def use(*values: float) -> tuple[float, float]:
        found = site_uses(model, [{"sample": np.array([values], np.float32)}], [("new", {})])["new"]["site0"]
        return found.lost, found.reach

    assert use(below, above, 0.0, 1.0) == (0.0, 1.0)
    assert use(0.0, 0.0, 0.0, 0.0) == (0.0, 0.0)
    assert use(above / 2, 0.0, below / 4, 0.0) == (0.0, pytest.approx(0.5))
    assert use(2 * above, 0.0, 0.0, 0.0) == (pytest.approx(0.25), pytest.approx(2.0))
    assert use(3 * below, 0.0, 0.0, 0.0) == (pytest.approx(4 / 9), pytest.approx(3.0))
    assert use(np.nan, 0.0, 0.0, 0.0) == (1.0, np.inf)


def test_the_worst_call_counts_and_the_graph_is_only_read(tmp_path: Path) -> None:
    model = chain(tmp_path / "model.onnx", 2, Encoding(bits=8, signed=True, symmetric=True, scale=(STEP,), zero_point=(0,)), (1, 4))
    before = model.read_bytes()
    quiet, loud = np.ones((1, 4), np.float32), np.array([[1.0, 127.5, 1.0, 1.0]], np.float32)
    found = site_uses(model, [{"sample": quiet}, {"sample": loud}, {"sample": quiet}], [("new", {})])["new"]
    assert found["site0"].lost == pytest.approx((127.5 - 63.75) ** 2 / (127.5**2 + 3), rel=1e-5)
    assert found["site1"].lost == 0.0  # what the first has cut off does not reach it
    assert model.read_bytes() == before


# In a process of its own: the peak of a process never falls.
MEASURE = """
import sys
import numpy as np
from quad.admit.sites import site_uses
from quad.core.memory import reset_peak, peak_ram_bytes
from pathlib import Path
call = {"sample": np.ones((1, 2**21), np.float32)}
reset_peak()
before = peak_ram_bytes()
site_uses(Path(sys.argv[1]), [call], [("new", {})])
print(peak_ram_bytes() - before)
"""


def test_no_activation_is_kept(tmp_path: Path) -> None:
    sites, size = 24, 2**21 * 4
    model = chain(
        tmp_path / "model.onnx", sites, Encoding(bits=16, signed=False, symmetric=False, scale=(STEP,), zero_point=(1000,)), (1, 2**21)
    )
    done = subprocess.run([sys.executable, "-c", MEASURE, model], check=True, capture_output=True, text=True)
    # A site's own few: x, what is cut off it, and its integers.
    assert int(done.stdout) < sites / 2 * size
