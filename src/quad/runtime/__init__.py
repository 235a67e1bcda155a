"""On the device: open a bundle, swap adapters, make pictures. No torch; engines are imported when chosen."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quad.runtime.adapters.store import AdapterStore as AdapterStore
    from quad.runtime.bundle import Bundle as Bundle
    from quad.runtime.bundle import open_bundle as open_bundle
    from quad.runtime.engines.engine import Engine as Engine
    from quad.runtime.engines.engine import Session as Session
    from quad.runtime.pipeline import QuadPipeline as QuadPipeline
    from quad.runtime.queue.scheduler import Scheduler as Scheduler
    from quad.runtime.queue.scheduler import SchedulerOptions as SchedulerOptions
    from quad.runtime.request import Request as Request
    from quad.runtime.stages import PipelineOutput as PipelineOutput

_LAZY = {
    "AdapterStore": "quad.runtime.adapters.store",
    "Bundle": "quad.runtime.bundle",
    "open_bundle": "quad.runtime.bundle",
    "Engine": "quad.runtime.engines.engine",
    "Session": "quad.runtime.engines.engine",
    "PipelineOutput": "quad.runtime.stages",
    "QuadPipeline": "quad.runtime.pipeline",
    "Request": "quad.runtime.request",
    "Scheduler": "quad.runtime.queue.scheduler",
    "SchedulerOptions": "quad.runtime.queue.scheduler",
}


def __getattr__(name: str) -> Any:
    """PEP 562: the room's public names, imported on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'quad.runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
