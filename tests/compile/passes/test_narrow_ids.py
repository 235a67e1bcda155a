"""Token ids of 32 bits: the same rows are looked up; whoever needs 64 bits is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quad.compile.passes import run_passes
from tests.compile.passes.conftest import Sketch

IDS = np.array([[3, 0, 7, 7, 1, 2]])


def lookup(op: str = "Gather", *, data: bool = False) -> ir.Model:
    """ids -> turned about -> rows of a table."""
    sketch = Sketch()
    ids = sketch.input("input_ids", 1, 6, dtype=ir.DataType.INT64)
    turned = sketch.value("Transpose", [ids], 6, 1, dtype=ir.DataType.INT64, perm=[1, 0])
    if data:
        first = sketch.value(op, [ids, sketch.constant("first", np.array([0]))], 1, 6, dtype=ir.DataType.INT64)
        return sketch.model(sketch.value("Gather", [sketch.noise("table", 8, 5), first], 1, 6, 5))
    shape = sketch.constant("shape", np.array([1, 6]))
    flat = sketch.value("Reshape", [turned, shape], 1, 6, dtype=ir.DataType.INT64)
    made = (1, 6, 5) if op == "Gather" else (1, 6)
    return sketch.model(sketch.value(op, [sketch.noise("table", 8, 5) if op == "Gather" else sketch.noise("table", 8, 6), flat], *made))


def run(model: ir.Model, ids: Any, path: Path) -> Any:
    ir.save(model, path)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input_ids": ids})[0]


@pytest.mark.parametrize("op", ["Gather", "GatherElements"])
def test_the_same_rows_are_looked_up(op: str, tmp_path: Path) -> None:
    before = lookup(op)
    after = run_passes(before.clone(), ["narrow_ids"])
    expected, found = run(before, IDS, tmp_path / "before.onnx"), run(after, IDS.astype(np.int32), tmp_path / "after.onnx")
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 5
    between = [output.dtype for node in after.graph if node.op_type in ("Transpose", "Reshape") for output in node.outputs]
    assert between == [ir.DataType.INT32] * 2
    assert before.graph.inputs[0].dtype == ir.DataType.INT64


def replaced(other: Any = 2, *, computed: bool = False) -> ir.Model:
    """ids -> each 7 becomes another one -> rows of a table."""
    sketch = Sketch()
    ids = sketch.input("input_ids", 1, 6, dtype=ir.DataType.INT64)
    end = sketch.value("Equal", [ids, sketch.constant("end", np.array(7))], 1, 6, dtype=ir.DataType.BOOL)
    taken = sketch.constant("other", np.array(other))
    if computed:
        taken = sketch.value("Neg", [taken], dtype=ir.DataType.INT64)
    chosen = sketch.value("Where", [end, taken, ids], 1, 6, dtype=ir.DataType.INT64)
    return sketch.model(sketch.value("Gather", [sketch.noise("table", 8, 5), chosen], 1, 6, 5))


def test_ids_are_compared_and_replaced_as_before(tmp_path: Path) -> None:
    before = replaced()
    after = run_passes(before.clone(), ["narrow_ids"])
    expected, found = run(before, IDS, tmp_path / "before.onnx"), run(after, IDS.astype(np.int32), tmp_path / "after.onnx")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[0, 2:4], found[0, [5, 5]])


@pytest.mark.parametrize(
    "model",
    [lookup("Gather", data=True), lookup("GatherND"), lookup("Add"), replaced(2**40), replaced(computed=True)],
    ids=["data", "GatherND", "Add", "a number of 64 bits", "a computed number"],
)
def test_who_needs_64_bits_is_named(model: ir.Model) -> None:
    with pytest.raises(ir.passes.PassError, match=r"reads ids of 64 bits"):
        run_passes(model, ["narrow_ids"])


def test_a_graph_without_ids_stays(tiny: Any) -> None:
    after = run_passes(tiny.graph.clone(), ["narrow_ids"])
    assert [value.dtype for value in after.graph.inputs] == [value.dtype for value in tiny.graph.graph.inputs]
