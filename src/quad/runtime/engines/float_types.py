"""The type that the denoiser's floats are computed in: engine and processor offer it, the bundle says whether it was proven.

Only the denoiser runs at every step; the other graphs stay exact.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from quad.core.errors import CompatibilityError, UsageError, mismatch
from quad.core.float_type import AUTO, BF16, F32, FLOAT_TYPES
from quad.core.manifest import BundleManifest
from quad.runtime.engines.engine import Engine

_LOG = logging.getLogger(__name__)


@runtime_checkable
class ShortFloats(Protocol):
    """An engine that can compute in bf16, given the processor."""

    def in_bf16(self) -> Engine | None:
        """The same engine in bf16; None where this processor has no instructions for it."""
        ...


@dataclass(frozen=True, kw_only=True)
class DenoiserEngine:
    """The engine that runs the denoiser, and the type of its floats."""

    engine: Engine
    float_type: str


def in_bf16(engine: Engine) -> Engine | None:
    """The engine in bf16; None where it, or this processor, has no such kernels."""
    return engine.in_bf16() if isinstance(engine, ShortFloats) else None


def denoiser_engine(engine: Engine, float_type: str, manifest: BundleManifest) -> DenoiserEngine:
    """The engine that runs a bundle's denoiser.

    Args:
        float_type: `f32`, `bf16`, or `auto`: bf16 where the engine has it and the bundle was proven with it, else f32.

    Raises:
        UsageError: another word. CompatibilityError: bf16 is asked of an engine or processor without it.
    """
    if float_type not in FLOAT_TYPES:
        raise UsageError(mismatch("--float", " | ".join(FLOAT_TYPES), repr(float_type), "choose one of these"))
    short = None if float_type == F32 or (float_type == AUTO and not is_proven(manifest, engine.name)) else in_bf16(engine)
    if short is not None:
        _LOG.info("engine %s: the denoiser's floats are bf16", engine.name)
        return DenoiserEngine(engine=short, float_type=BF16)
    if float_type == BF16:
        raise CompatibilityError(mismatch("--float", f"{F32}, all that engine {engine.name} has here", BF16, "leave it out"))
    return DenoiserEngine(engine=engine, float_type=F32)


def is_proven(manifest: BundleManifest, engine: str) -> bool:
    """Was the bundle proven with bf16 on this engine when it was built."""
    return manifest.bf16 is not msgspec.UNSET and any(proof.engine == engine for proof in manifest.bf16)
