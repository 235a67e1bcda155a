"""quad: one frozen quantized diffusion graph, any number of LoRAs as its inputs.

`import quad` loads nothing: names are fetched when first used, so a device without torch can import it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quad.runtime.pipeline import QuadPipeline as QuadPipeline

# Libraries below report their use by default: ONNX Runtime's wheels leave a device id in the home directory and look for a collector, those
# of Hugging Face name themselves to the hub. Both read the environment at their import, so it is set before that. What the user has set
# stays: ORT_DISABLE_TELEMETRY=0 and HF_HUB_DISABLE_TELEMETRY=0 switch them on.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")

__version__ = "0.2.0"

_LAZY = {
    "QuadPipeline": "quad.runtime.pipeline",
    "build": "quad.build.build",
    "adapt": "quad.align.adapt",
    "bake": "quad.export.bake.bake",
}


def __getattr__(name: str) -> Any:
    """PEP 562: the public names, imported on first use.

    Raises:
        AttributeError: quad has no such name, or this version does not have that part.
    """
    if name not in _LAZY:
        raise AttributeError(f"module 'quad' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("quad"):
            raise AttributeError(f"quad.{name}: this version has no {_LAZY[name]}") from error
        raise


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
