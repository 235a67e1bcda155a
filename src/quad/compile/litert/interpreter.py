"""LiteRT's interpreter on the CPU, for proofs in a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from quad.core.errors import BackendError, mismatch
from quad.runtime.engines.engine import first_line

Arrays = Mapping[str, NDArray[Any]]


class TfliteRunner:
    """One file's graph; the first output is given.

    Args:
        content: of the file.
        name: for errors.
        delegates: let LiteRT hand parts to XNNPACK, as it does by itself; without, its own kernels alone.
        keep_all: every tensor can be read after a run.
    """

    def __init__(self, content: bytes, name: str, *, delegates: bool, keep_all: bool = False) -> None:
        resolver = OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._name = name
        try:
            self._interpreter = Interpreter(
                model_content=content,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=keep_all,
                num_threads=1,
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            hint = "report it with the model's name"
            raise BackendError(mismatch(f"{name} on LiteRT", "a graph that its interpreter takes", first_line(error), hint)) from error
        self._places = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
        self._output = self._interpreter.get_output_details()[0]["index"]

    def run(self, feed: Arrays) -> NDArray[Any]:
        """The output for inputs as the graph takes them.

        Raises:
            BackendError: a kernel fails.
        """
        for name, detail in self._places.items():
            self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(feed[name], detail["dtype"]))
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise BackendError(f"{self._name} on LiteRT: a kernel fails ({first_line(error)}); report it with the model's name") from error
        output: NDArray[Any] = self._interpreter.get_tensor(self._output)
        return output

    def run_all(self, feed: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Those of these tensors that the file has; it was opened with `keep_all`."""
        self.run(feed)
        details = {detail["name"]: detail["index"] for detail in self._interpreter.get_tensor_details()}
        return {name: self._interpreter.get_tensor(details[name]) for name in names if name in details}
