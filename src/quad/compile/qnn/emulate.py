"""A compiled HTP graph against the same Q/DQ graph on the CPU: accepted by the compiler does not mean computed right (docs/targets.md).

Where they part, the first edge at which they do is found by compiling the graph again with some edges as further outputs, see
`quad.compile.first_divergence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.agreement import AGREE_DB, as_written, encoding_of
from quad.compile.artifact import save_graph
from quad.compile.first_divergence import first_under
from quad.compile.placement.integer_graph import IntegerGraph
from quad.compile.qnn.chips import Soc
from quad.compile.qnn.compile_graph import compiler_options
from quad.core.decibels import array_sqnr_db
from quad.core.encoding import Encoding
from quad.core.errors import BackendError, mismatch
from quad.core.storage.files import scratch_directory
from quad.runtime.engines.qnn import htp_session

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Divergence:
    """The first edge that HTP and CPU compute differently.

    Args:
        tensor: its name; `operator` makes it.
        sqnr_db: of what the HTP gives against the CPU.
    """

    tensor: str
    operator: str
    sqnr_db: float


def check_agreement(
    graph: IntegerGraph, compiled: Path, soc: Soc, feeds: Mapping[str, Arrays], limit_db: float = AGREE_DB
) -> dict[str, float]:
    """SQNR of the compiled graph against the CPU for each feed.

    Args:
        compiled: its `model.onnx`.
        feeds: name -> every graph input as integers.

    Raises:
        BackendError: one is under `limit_db`; the message names the first edge that diverges.
    """
    encoding = next(iter(graph.ports.outputs.values())).encoding
    if encoding is None:
        raise BackendError(mismatch(str(compiled), "an encoded output", "none", "build the bundle again"))
    binary = htp_session(compiled)
    with scratch_directory() as scratch:
        reference = as_written(graph.model, scratch / "reference.onnx")
        agreement_db: dict[str, float] = {}
        for name, feed in feeds.items():
            expected, output = (encoding.dequantize(session.run(None, dict(feed))[0]) for session in (reference, binary))
            agreement_db[name] = array_sqnr_db(expected, output)
            if agreement_db[name] < limit_db:
                try:
                    first = first_divergence(graph, soc, feed, limit_db)
                except BackendError:  # a graph with more outputs may be one that the compiler refuses
                    first = None
                raise BackendError(_message(compiled.parent.name, name, first, agreement_db[name], limit_db))
    return agreement_db


def _message(component: str, feed: str, first: Divergence | None, sqnr_db: float, limit_db: float) -> str:
    where = f"{component} on the HTP with {feed}"
    hint = "report it with the model's name"
    if first is not None:
        hint = f"first to diverge is {first.tensor} (made by {first.operator}, {first.sqnr_db:.1f} dB): write that operator another way"
    return mismatch(where, f"at least {limit_db:.0f} dB against the CPU", f"{sqnr_db:.1f} dB", hint)


def first_divergence(graph: IntegerGraph, soc: Soc, feed: Arrays, limit_db: float = AGREE_DB) -> Divergence | None:
    """The first edge, in the order of the graph, that is under `limit_db`; None where the graph agrees when it is compiled anew."""
    edges = _quantized(graph.model.graph)
    first = first_under(len(edges), lambda places: _compare(graph.model, [edges[place] for place in places], soc, feed), limit_db)
    if first is None:
        return None
    name, operator, _ = edges[first[0]]
    return Divergence(name, operator, first[1])


def _quantized(graph: ir.Graph) -> list[tuple[str, str, Encoding]]:
    """Every computed edge: the name of its integers, the operator behind it, its encoding."""
    edges = []
    for node in graph:
        source = node.inputs[0].producer() if node.op_type == "QuantizeLinear" and node.inputs[0] is not None else None
        if source is not None and source.op_type != "DequantizeLinear":
            edges.append((str(node.outputs[0].name), source.op_type, encoding_of(node)))
    return edges


def _compare(model: ir.Model, edges: Sequence[tuple[str, str, Encoding]], soc: Soc, feed: Arrays) -> list[float]:
    """SQNR of each of these edges, HTP against CPU."""
    copy = model.clone()
    values = {str(output.name): output for node in copy.graph for output in node.outputs}
    names = [name for name, _, _ in edges]
    present = {str(value.name) for value in copy.graph.outputs}
    copy.graph.outputs.extend([values[name] for name in names if name not in present])
    with scratch_directory() as scratch:
        reference = as_written(copy, scratch / "reference.onnx")
        save_graph(copy, scratch / "candidate.onnx")
        candidate = htp_session(scratch / "candidate.onnx", options=compiler_options(soc))
        expected, outputs = (session.run(names, dict(feed)) for session in (reference, candidate))
    return [array_sqnr_db(e.dequantize(a), e.dequantize(b)) for (_, _, e), a, b in zip(edges, expected, outputs, strict=True)]
