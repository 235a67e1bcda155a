"""quad::Site(x) -> x: what remains of a Site without an encoding, and of all Sites in a float graph."""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "quad"
CONTRIBUTED = "com.microsoft"


def is_site(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "Site"


def site_name(node: ir.Node) -> str:
    """The profile's name of a Site."""
    return node.attributes["name"].as_string()


class RemoveSites(ir.passes.InPlacePass):
    """Bypass and delete every Site."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sites = [node for node in model.graph if is_site(node)]
        for node in sites:
            source = node.inputs[0]
            if source is None:
                raise ir.passes.PassError(f"{node.name}: a Site without an input")
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        model.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, bool(sites))

    def ensures(self, model: ir.Model) -> None:
        """Only standard operators are left, and those that ONNX Runtime brings itself."""
        if foreign := sorted({node.domain for node in model.graph} - {"", CONTRIBUTED}):
            raise ir.passes.PostconditionError(f"the graph still holds operators of {', '.join(foreign)}")
