"""The graphs of a bundle, read to be written otherwise."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir

from quad.compile.targets import load_target
from quad.core.errors import CompatibilityError, UnsupportedError, VerificationError, mismatch
from quad.core.extra_graphs import SHALLOW_UNET
from quad.core.picture_size import PictureSize
from quad.runtime.bundle import AGAIN, Bundle

_MERGE_FIRST = (
    "merge the LoRA into the model's own weights and build that without it, or bind the adapter: a switch costs nothing at a step"
)


def require_slots(bundle: Bundle) -> None:
    """Raises:
    CompatibilityError: it has none, its U-Net is in two graphs that share them, or they hold a correction of the base too.
    """
    if bundle.slots.corrected:
        found = "weights of 4 bits, which slots correct"
        raise CompatibilityError(mismatch(f"bundle {bundle.name!r}", "weights of 8 bits", found, "build it with --correction-rank 0"))
    if SHALLOW_UNET in bundle.manifest.components:
        found = "one that was built with --reuse"
        raise CompatibilityError(mismatch(f"bundle {bundle.name!r}", "a U-Net in one graph", found, "build it again without --reuse"))
    if not bundle.slots.slots:
        found = "none" if bundle.manifest.merged is msgspec.UNSET else "none, its adapters are merged already"
        hint = "take the bundle that was built with adapters"
        raise CompatibilityError(mismatch(f"bundle {bundle.name!r}", "slots of adapters", found, hint))


def require_onnx(bundle: Bundle, instead: str = _MERGE_FIRST) -> None:
    """Refuse a bundle whose graphs are compiled.

    Args:
        instead: what to do.

    Raises:
        UnsupportedError: they are.
    """
    if load_target(bundle.manifest.target).backend != "onnx":
        found = f"binaries that were compiled for {bundle.manifest.target}"
        raise UnsupportedError(mismatch(f"bundle {bundle.name!r}", "ONNX graphs", found, instead))


def graph_sizes(bundle: Bundle, component: str) -> tuple[PictureSize | None, ...]:
    """The sizes that a component has graphs for, None for the first."""
    return (None, *(bundle.manifest.picture_sizes[1:] if bundle.manifest.components[component].sizes else ()))


def read_graph(bundle: Bundle, component: str, size: PictureSize | None, group: int = 0) -> ir.Model:
    """A graph of a component, for one of its further sizes, None for the first, and a group of adapters, counted from 0.

    Raises:
        VerificationError: it is none, or was changed.
    """
    file = bundle.graph(component, size, group)
    try:
        model = ir.load(file)
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _mapped(value.const_value, bundle, component)
    except Exception as error:  # the library's errors have no common root but this
        raise VerificationError(mismatch(str(file), "an ONNX graph", str(error) or type(error).__name__, AGAIN)) from error
    return model


def _mapped(tensor: ir.ExternalTensor, bundle: Bundle, component: str) -> ir.TensorProtocol:
    """The same numbers, mapped from a shipped file whose digest was compared; the library itself refuses a file that has two names."""
    if tensor.dtype.itemsize < 1:
        return tensor
    path = bundle.path(f"{component}/{tensor.location}")
    array = np.memmap(path, tensor.dtype.numpy(), "r", tensor.offset or 0, tuple(tensor.shape.numpy()))
    return ir.tensor(array, name=tensor.name)
