"""Each pass leaves the function as it was and keeps what it promises (law 6)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quad.compile.passes import FoldWeightTranspose, RemoveSites, finish, tidy, weight_permutation

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 3)).astype(np.float32)


def constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array.astype(np.float32), name=name)
    return ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))


def model_of(*, sites: bool, shared: bool = False) -> ir.Model:
    """y = x W^T + b as torch writes it; `shared`: W itself is read too, by an Add of its sum."""
    x = ir.Value(name="x", shape=ir.Shape((2, 3)), type=ir.TensorType(ir.DataType.FLOAT))
    weight, bias = constant("fc.weight", GENERATOR.standard_normal((4, 3))), constant("fc.bias", GENERATOR.standard_normal(4))
    nodes = [ir.node("Site", [x], domain="quad", attributes={"name": "fc.in"})] if sites else []
    turned = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [nodes[0].outputs[0] if sites else x, turned.outputs[0]])
    total = ir.node("Add", [product.outputs[0], bias])
    nodes += [turned, product, total]
    if shared:
        nodes.append(ir.node("ReduceSum", [weight], attributes={"keepdims": 0}))
        nodes.append(ir.node("Add", [total.outputs[0], nodes[-1].outputs[0]]))
    y = nodes[-1].outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape((2, 4))
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[weight, bias], opset_imports={"": 21, "quad": 1}, name="g")
    return ir.Model(graph, ir_version=10)


def expected_of(model: ir.Model, shared: bool = False) -> np.ndarray:
    weight, bias = (model.graph.initializers[name].const_value.numpy() for name in ("fc.weight", "fc.bias"))
    return X @ weight.T + bias + (weight.sum() if shared else 0)


def run(model: ir.Model) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def test_a_transposed_weight_is_stored_so_and_remembered() -> None:
    model = model_of(sites=False)
    expected = expected_of(model)
    assert FoldWeightTranspose()(model).modified
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    weight = model.graph.initializers["fc.weight"]
    assert tuple(weight.shape) == (3, 4)
    assert weight_permutation(weight) == (1, 0)
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-6)
    assert not FoldWeightTranspose()(model).modified


def test_a_weight_that_is_read_both_ways_stays() -> None:
    model = model_of(sites=False, shared=True)
    expected = expected_of(model, shared=True)
    assert not FoldWeightTranspose()(model).modified
    assert weight_permutation(model.graph.initializers["fc.weight"]) is None
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-6)


def test_sites_are_removed_and_nothing_else() -> None:
    model = model_of(sites=True)
    expected = expected_of(model)
    RemoveSites()(model)
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "Add"]
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-6)


def test_a_foreign_operator_is_not_let_through() -> None:
    model = model_of(sites=False)
    model.graph.append(ir.node("Odd", [model.graph.inputs[0]], domain="elsewhere"))
    with pytest.raises(ir.passes.PostconditionError):
        RemoveSites()(model)


def test_the_sequences_keep_the_function_and_the_names() -> None:
    model = model_of(sites=True)
    expected = expected_of(model)
    tidied = tidy(model)
    assert {"fc.weight", "fc.bias"} <= set(tidied.graph.initializers)
    finished = finish(RemoveSites()(tidied).model)
    assert "fc.weight" in finished.graph.initializers
    np.testing.assert_allclose(run(finished), expected, rtol=1e-5, atol=1e-6)
