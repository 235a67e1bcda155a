"""Small graphs by hand, and the tiny network as a pass is given it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from quad.compile.passes import contract, run_passes
from quad.compile.passes.contract import ContractReport, ContractTrial, check_contract
from quad.compile.passes.integers.remove_sites import is_site
from quad.lora.fit.slot_inputs import slot_inputs
from quad.runtime.engines.ort import OrtSession

SLOT_A, SLOT_B = "fc.lora_A", "fc.lora_B"


class Sketch:
    """A graph written line by line; shapes are given, as torch's exporter gives them."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []

    def input(self, name: str, *shape: int, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        self._inputs.append(ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype)))
        return self._inputs[-1]

    def constant(self, name: str, array: Any) -> ir.Value:
        tensor = ir.tensor(np.asarray(array), name=name)
        self._constants.append(
            ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
        )
        return self._constants[-1]

    def noise(self, name: str, *shape: int) -> ir.Value:
        return self.constant(name, self._generator.standard_normal(shape).astype(np.float32))

    def value(self, op: str, inputs: Sequence[ir.Value | None], *shape: int, dtype: ir.DataType = ir.DataType.FLOAT,
              **attributes: Any) -> ir.Value:  # fmt: skip
        return self.values(op, inputs, [shape], dtype=dtype, **attributes)[0]

    def values(self, op: str, inputs: Sequence[ir.Value | None], shapes: Sequence[Sequence[int]], dtype: ir.DataType = ir.DataType.FLOAT,
               **attributes: Any) -> list[ir.Value]:  # fmt: skip
        name = f"n{len(self._nodes)}"
        domain = "quad" if op == "Site" else ""
        node = ir.node(op, inputs, domain=domain, attributes=attributes, num_outputs=len(shapes), name=name)
        for index, (output, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            output.name, output.shape, output.type = f"{name}_{index}", ir.Shape(shape), ir.TensorType(dtype)
        self._nodes.append(node)
        return list(node.outputs)

    def site(self, x: ir.Value, name: str) -> ir.Value:
        return self.value("Site", [x], *x.shape.numpy(), name=name)

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.value("Reshape", [x, self.constant(f"shape_{len(self._nodes)}", np.array(shape, np.int64))], *shape)

    def transpose(self, x: ir.Value, *perm: int) -> ir.Value:
        return self.value("Transpose", [x], *(x.shape.numpy()[k] for k in perm), perm=list(perm))

    def linear(self, x: ir.Value, path: str, width: int, *, bias: bool = True) -> ir.Value:
        """As `tidy` leaves a Linear: the weight stored transposed."""
        weight = self.noise(f"{path}.weight", x.shape.numpy()[-1], width)
        weight.metadata_props["quad.permutation"] = "[1, 0]"
        shape = (*x.shape.numpy()[:-1], width)
        y = self.value("MatMul", [x, weight], *shape)
        return self.value("Add", [y, self.noise(f"{path}.bias", width)], *shape) if bias else y

    def slotted(self, x: ir.Value, path: str, width: int, rank: int = 2) -> ir.Value:
        """A Linear with a slot, its Sites included."""
        sited = self.site(x, f"{path}.in")
        down, up = self.input(f"{path}.lora_A", rank, x.shape.numpy()[-1]), self.input(f"{path}.lora_B", width, rank)
        mid = self.value("MatMul", [sited, self.transpose(down, 1, 0)], *x.shape.numpy()[:-1], rank)
        branch = self.value("MatMul", [self.site(mid, f"{path}.lora_mid"), self.transpose(up, 1, 0)], *x.shape.numpy()[:-1], width)
        return self.value("Add", [self.linear(sited, path, width), branch], *x.shape.numpy()[:-1], width)

    def model(self, *outputs: ir.Value) -> ir.Model:
        for index, output in enumerate(outputs):
            output.name = f"out_{index}"
        graph = ir.Graph(
            self._inputs, outputs, nodes=self._nodes, initializers=self._constants, opset_imports={"": 21, "quad": 1}, name="g"
        )
        return ir.Model(graph, ir_version=10)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def site_names(model: ir.Model) -> Counter[str]:
    return Counter(node.attributes["name"].as_string() for node in model.graph if is_site(node))


def feeds(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    """Noise for every input that is no slot."""
    generator = np.random.default_rng(1)
    return {
        str(value.name): generator.standard_normal(value.shape.numpy()).astype(np.float32)
        for value in model.graph.inputs
        if value.shape is not None and ".lora_" not in str(value.name)
    }


def kept(before: ir.Model, *names: str, tolerance: float = 1e-5, group: int = 1) -> tuple[ir.Model, ContractReport]:
    """The graph after passes by name, proven to do the same; `before` stays as it is."""
    after = run_passes(before.clone(), names)
    return after, check_contract(before, after, ContractTrial(inputs=feeds(before), tolerance=tolerance, group=group), ", ".join(names))


@pytest.fixture(scope="session")
def tiny_trial(tiny: Any) -> Iterator[ContractTrial]:
    """The tiny network's inputs and adapters; its own graph, which no test changes, is loaded once."""
    adapters: Mapping[str, Any] = {one.name: slot_inputs(one, tiny.table) for one in tiny.adapters}
    load, sessions = contract._load, list[OrtSession]()

    def load_once(model: ir.Model, directory: Path) -> OrtSession:
        if model is not tiny.graph:
            return load(model, directory)
        if not sessions:
            sessions.append(load(model, directory))
        return sessions[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "_load", load_once)
        yield ContractTrial(inputs=tiny.inputs, adapters={**adapters, "base": slot_inputs(None, tiny.table)}, group=4)
