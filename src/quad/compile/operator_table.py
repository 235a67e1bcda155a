"""torch's table of ONNX forms, made once for all traces of a process: the exporter imports its 1,000 operators anew for each graph."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.onnx._internal.exporter._registration import ONNXRegistry

_MAKER = "from_torchlib"
_make = ONNXRegistry.from_torchlib


@contextmanager
def one_operator_table() -> Iterator[None]:
    """Inside the block every trace takes the table that is there already."""
    before = ONNXRegistry.__dict__[_MAKER]
    setattr(ONNXRegistry, _MAKER, staticmethod(_copied))
    try:
        yield
    finally:
        setattr(ONNXRegistry, _MAKER, before)


def _copied(*arguments: Any, **options: Any) -> ONNXRegistry:
    """A table of its own, since an export adds its own operators: a list of forms for each name."""
    table = copy.copy(_made(*arguments, **options))
    table.functions = {name: [*forms] for name, forms in table.functions.items()}
    return table


@functools.cache
def _made(*arguments: Any, **options: Any) -> ONNXRegistry:
    return _make(*arguments, **options)
