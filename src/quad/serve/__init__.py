"""Several apps on one device, one resident model: the service of `quad serve`, and its client."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quad.serve.admission.options import AdmissionOptions as AdmissionOptions
    from quad.serve.client import QuadClient as QuadClient
    from quad.serve.limits import Limits as Limits

_LAZY = {
    "AdmissionOptions": "quad.serve.admission.options",
    "QuadClient": "quad.serve.client",
    "Limits": "quad.serve.limits",
}


def __getattr__(name: str) -> Any:
    """PEP 562: the room's public names, imported on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'quad.serve' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
