"""A device that is not there: it computes on the CPU, refuses operands of two devices, and counts what crosses over.

An accelerator refuses the same; so whoever runs here without a word moves every tensor that it must. Its numbers are the CPU's.
It goes by the name of torch's own device for tensors without numbers, since autograd knows no name that is not built in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"
_THERE, _CPU = torch.device(NAME), torch.device("cpu")
_COPIES = ("aten::_to_copy", "aten::copy_")
Crossings = Counter[str]  # "in" and "out" -> tensors


class Remote(torch.Tensor):
    """A tensor that lies elsewhere; NumPy cannot read it."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Remote:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor: Remote = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=_THERE, requires_grad=held.requires_grad, **layout)
        tensor.held = held
        return tensor

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Remote{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Elsewhere(TorchDispatchMode):
    """Takes the calls that make or copy tensors, whose operands do not tell where."""

    def __init__(self) -> None:
        super().__init__()
        self.crossings: Crossings = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _computed(func, args, kwargs or {})
        if func._schema.name in _COPIES:
            source = args[1] if func._schema.name == "aten::copy_" else args[0]
            if isinstance(source, Remote) != isinstance(result, Remote):
                self.crossings["in" if isinstance(result, Remote) else "out"] += 1
        return result


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator on the CPU; what it gives lies where its operands do, or where it is asked for."""
    operands = tree_flatten((args, kwargs))[0]
    remote = any(isinstance(operand, Remote) for operand in operands)
    local = [operand for operand in operands if isinstance(operand, torch.Tensor) and not isinstance(operand, Remote)]
    if remote and func._schema.name not in _COPIES and any(tensor.ndim for tensor in local):  # numbers may come from anywhere
        raise RuntimeError(f"{func}: operands on two devices, {[tuple(tensor.shape) for tensor in local]} on the CPU")
    asked = kwargs.get("device")
    if asked is not None:
        remote, kwargs = torch.device(asked) == _THERE, {**kwargs, "device": _CPU}
    if func._schema.name == "aten::copy_":
        remote = isinstance(args[0], Remote)
    unwrap: Callable[[Any], Any] = lambda x: x.held if isinstance(x, Remote) else x  # noqa: E731
    result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if func._schema.name.endswith("_") and isinstance(args[0], Remote):
        return args[0]
    return tree_map(lambda x: Remote(x) if remote and isinstance(x, torch.Tensor) else x, result)


@contextmanager
def elsewhere() -> Iterator[Crossings]:
    """While the block runs, tensors of this thread can lie there."""
    mode = _Elsewhere()
    with mode:
        yield mode.crossings
