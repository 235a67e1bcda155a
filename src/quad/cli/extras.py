"""The extras that a verb needs: a missing one is named, instead of a module that could not be imported."""

from __future__ import annotations

from quad.core.errors import UnsupportedError, mismatch


def check_build(verb: str) -> None:
    """Raises:
    UnsupportedError: `quad[build]` is not installed.
    """
    try:
        import diffusers  # noqa: F401
        import onnx_ir  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise _missing(verb, "build", error) from error


def check_export(verb: str) -> None:
    """As `check_build`, of what edits graphs alone: no torch.

    Raises:
        UnsupportedError: `quad[build]` is not installed.
    """
    try:
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise _missing(verb, "build", error) from error


def check_delivery(verb: str) -> None:
    """Raises:
    UnsupportedError: `quad[delivery]` is not installed.
    """
    try:
        import cryptography  # noqa: F401
        import tuf.ngclient  # noqa: F401
    except ModuleNotFoundError as error:
        raise _missing(verb, "delivery", error) from error


def check_serve(verb: str) -> None:
    """Raises:
    UnsupportedError: `quad[serve]` is not installed.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(mismatch(verb, "the serve extra", "none", "pip install 'quad[serve]'")) from error


def _missing(verb: str, extra: str, error: ModuleNotFoundError) -> UnsupportedError:
    remedy = f"install it: pip install 'quad[{extra}]'"
    return UnsupportedError(mismatch(verb, f"the {extra} extra", f"no module {error.name}", remedy))
