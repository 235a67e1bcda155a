"""A 16-bit weight as two of 8 bits: the integers are the same, to the last one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.integers.split_weight import SplitWeight, half_encodings
from quad.compile.targets import load_target
from quad.core.encoding import encode_range
from tests.compile.passes.conftest import Sketch, feeds, operators

END = load_target("litert").int16_largest


def test_both_halves_together_are_every_integer() -> None:
    encoding = encode_range(-1.0, 1.0, bits=16, signed=True, symmetric=True).within(END)
    sketch = Sketch()
    integers = np.arange(-END, END + 1, dtype=np.int64).reshape(1, -1)
    weight = sketch.constant("fc.weight", encoding.dequantize(integers))
    model = sketch.model(sketch.value("MatMul", [sketch.input("x", 2, 1), weight], 2, integers.size))
    graph = SplitWeight({"fc.weight": encoding})(model).model.graph
    halves = half_encodings({"fc.weight": encoding, "fc.in": encode_range(0.0, 1.0, bits=16, signed=False, symmetric=False)})
    assert set(halves) == {"fc.weight/high", "fc.weight/low"}
    parts = {name: halves[name].quantize(graph.initializers[name].const_value.numpy()).astype(np.int64) for name in halves}
    np.testing.assert_array_equal(255 * parts["fc.weight/high"] + parts["fc.weight/low"], integers)
    assert all(encoding.symmetric and np.abs(parts[name]).max() == 127 for name, encoding in halves.items())


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_a_layer_becomes_two_and_a_sum(op: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 3, 4, 4) if op == "Conv" else sketch.input("x", 4, 3)
    weight = sketch.noise("fc.weight", *((2, 3, 1, 1) if op == "Conv" else (3, 2)))
    values, axis = weight.const_value.numpy(), 0
    if op == "MatMul":
        weight.metadata_props["quad.permutation"] = "[1, 0]"
        values = values.T
    limit = np.abs(values.reshape(2, -1)).max(axis=1)
    encoding = encode_range(-limit, limit, bits=16, signed=True, symmetric=True, axis=axis)
    model = sketch.model(sketch.value(op, [x, weight], *((1, 2, 4, 4) if op == "Conv" else (4, 2))))
    after = SplitWeight({"fc.weight": encoding})(model.clone()).model
    assert operators(after) == {op: 2, "Add": 1}
    check_contract(model, after, ContractTrial(inputs=feeds(model), tolerance=1e-4), "split_weight")


def test_a_bias_is_refused() -> None:
    sketch = Sketch()
    operands = [sketch.input("x", 1, 3, 4, 4), sketch.noise("fc.weight", 2, 3, 1, 1), sketch.noise("fc.bias", 2)]
    encoding = encode_range(-1.0, 1.0, bits=16, signed=True, symmetric=True)
    with pytest.raises(ir.passes.PassError, match="n0: a layer with a bias"):
        SplitWeight({"fc.weight": encoding})(sketch.model(sketch.value("Conv", operands, 1, 2, 4, 4)))
