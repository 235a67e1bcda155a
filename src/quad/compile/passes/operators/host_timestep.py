"""The sinusoid of the timestep leaves the graph: 16-bit integers hold it well, but not the angles it is made from.

The graph's input `timestep (1,)` becomes the embedding itself, `(1, C)`, which the engine's session computes for each call.
"""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import is_op
from quad.compile.passes.integers.remove_sites import is_site

INPUT = "timestep"


class HostTimestep(ir.passes.InPlacePass):
    """Cut the graph behind Sin and Cos of its input `timestep`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        timestep = next((value for value in graph.inputs if value.name == INPUT), None)
        if timestep is None or not any(is_op(node, "Sin", "Cos") for node in graph):
            return ir.passes.PassResult(model, False)
        embedding = self._embedding(graph)
        fresh = ir.Value(name=INPUT, shape=embedding.shape, type=ir.TensorType(ir.DataType.FLOAT))
        timestep.name = f"{INPUT}/unread"
        embedding.replace_all_uses_with(fresh)
        graph.inputs[list(graph.inputs).index(timestep)] = fresh
        unread = reversed([node for node in graph if not is_site(node)])
        for node in unread:
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                graph.remove(node, safe=True)
        if left := timestep.consumers():
            raise ir.passes.PassError(f"{left[0].name} reads the timestep beside its one embedding")
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """No angle is left where there is a timestep."""
        if all(value.name != INPUT for value in model.graph.inputs):
            return
        if left := [node.name for node in model.graph if is_op(node, "Sin", "Cos")]:
            raise ir.passes.PostconditionError(f"{left[0]} still computes an angle's sine")

    @staticmethod
    def _embedding(graph: ir.Graph) -> ir.Value:
        """The first value behind the sines that a Site or a layer reads."""
        behind: set[ir.Value] = set()
        for node in graph:
            if is_op(node, "Sin", "Cos"):
                behind.update(node.outputs)
            elif any(value in behind for value in node.inputs):
                if not is_op(node, "Concat", "Slice", "Split", "Cast", "Reshape"):
                    return next(value for value in node.inputs if value is not None and value in behind)
                behind.update(node.outputs)
        raise ir.passes.PassError("nothing reads the timestep's embedding")
