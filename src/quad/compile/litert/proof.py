"""A written file on LiteRT's CPU kernels against the placed graph on ONNX Runtime's, in every build, for every adapter: a file that is read
is not yet one that computes right. Where they part, the first tensor that differs is named: both are run again with all of them kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from quad.compile.agreement import as_written, encoding_of
from quad.compile.litert.interpreter import TfliteRunner
from quad.compile.passes.edit import is_op
from quad.core.decibels import array_sqnr_db
from quad.core.encoding import Encoding
from quad.core.errors import BackendError, mismatch
from quad.core.ports import Port
from quad.core.storage.files import scratch_directory

Arrays = Mapping[str, NDArray[Any]]

# The least agreement of graphs of floats, dB; of integers, see `quad.compile.agreement`. With weights of 8 bits alone LiteRT rounds
# activations as it runs, to 8 bits a row.
DYNAMIC_AGREE_DB, FLOAT_AGREE_DB = 20.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A file and the graph that it is compared with.

    Args:
        name: of the component, for errors.
        content: of the file.
        placed: the graph that was lowered.
        output: of both.
        delegates: see `TfliteRunner`.
        limit_db: the least agreement.
    """

    name: str
    content: bytes
    placed: ir.Model
    output: Port
    delegates: bool
    limit_db: float

    def agreement(self, feeds: Mapping[str, Arrays]) -> dict[str, float]:
        """SQNR of the file against the placed graph, by what both are fed with.

        Args:
            feeds: name -> graph input -> array, as the graph takes it.

        Raises:
            BackendError: one is under the limit; the message names the first tensor that differs.
        """
        runner = TfliteRunner(self.content, self.name, delegates=self.delegates)
        agreement_db: dict[str, float] = {}
        with scratch_directory() as scratch:
            reference = as_written(self.placed.clone(), scratch / "placed.onnx")
            for name, feed in feeds.items():
                expected, output = self.output.decode(_run(reference, feed)[0]), self.output.decode(runner.run(feed))
                agreement_db[name] = array_sqnr_db(expected, output)
                if not agreement_db[name] >= self.limit_db:
                    raise BackendError(self._message(name, agreement_db[name], self._first_difference(feed, scratch)))
        return agreement_db

    def _message(self, feed: str, found_db: float, first: tuple[str, float] | None) -> str:
        hint = "report it with the model's name"
        if first is not None:
            hint = f"first to differ is tensor {first[0]} ({first[1]:.1f} dB); {hint}"
        where = f"{self.name} on LiteRT with {feed}"
        return mismatch(where, f"at least {self.limit_db:.0f} dB against the placed graph", f"{found_db:.1f} dB", hint)

    def _first_difference(self, feed: Arrays, scratch: Path) -> tuple[str, float] | None:
        """The first tensor between Q and DQ, in the order of the graph, that is under the limit, and its agreement."""
        copy = self.placed.clone()
        encodings: dict[str, Encoding] = {}
        for node in copy.graph:
            if is_op(node, "QuantizeLinear") and not node.outputs[0].is_graph_output():
                encodings[str(node.outputs[0].name)] = encoding_of(node)
                copy.graph.outputs.append(node.outputs[0])
        expected = _run(as_written(copy, scratch / "all.onnx"), feed)[1:]
        outputs = TfliteRunner(self.content, self.name, delegates=False, keep_all=True).run_all(feed, tuple(encodings))
        for (name, encoding), array in zip(encodings.items(), expected, strict=True):
            found_db = _agreement_db(encoding.dequantize(array), encoding.dequantize(outputs[name])) if name in outputs else inf
            if found_db < self.limit_db:
                return name, found_db
        return None


def _agreement_db(expected: NDArray[Any], output: NDArray[Any]) -> float:
    """In whichever order of axes they agree best: a file may hold a tensor in another than the graph names. Infinite where none fits."""
    orders = [expected.transpose(order) for order in permutations(range(expected.ndim))] if expected.ndim == output.ndim else []
    return max((array_sqnr_db(turned, output) for turned in orders if turned.shape == output.shape), default=inf)


def _run(session: ort.InferenceSession, feed: Arrays) -> list[NDArray[Any]]:
    outputs: list[NDArray[Any]] = session.run(None, {value.name: np.asarray(feed[value.name]) for value in session.get_inputs()})
    return outputs
