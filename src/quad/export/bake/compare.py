"""A merged graph beside the one with slots: the same calls, the same adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.component_call import Inputs
from quad.core.decibels import EffectEnergy, array_sqnr_db
from quad.core.errors import BackendError, mismatch
from quad.runtime.engines.engine import Arrays, Engine, Session

Output = NDArray[np.float64]
# Below it the weights went to the wrong places: a relative error of 0.3, as in a build's own trial of its graphs.
LEAST_DB = 10.5


class MergedLikeness(msgspec.Struct, frozen=True, kw_only=True):
    """How near a merged graph comes to the one with slots.

    Args:
        output_db: SQNR of its outputs.
        effect_db, effect_gain: of what the adapters change in them.
        slots_ms, merged_ms: the fastest call, the two in turn.
        calls: that were compared.
    """

    output_db: float
    effect_db: float
    effect_gain: float
    slots_ms: float
    merged_ms: float
    calls: int


def compare(engine: Engine, threads: int, graphs: tuple[Path, Path], buffers: tuple[Arrays, Arrays], calls: Sequence[Inputs]
            ) -> MergedLikeness:  # fmt: skip
    """Run both graphs on the same calls.

    Args:
        graphs: with slots, and merged.
        buffers: of that graph's slots: none, and the adapters.

    Raises:
        BackendError: the merged graph gives another shape, NaN, or something else altogether.
    """
    (before, after), (zeros, mix) = (engine.load(graph, threads) for graph in graphs), buffers
    before.bind(zeros)
    base = [_timed(before, call)[0] for call in calls]
    before.bind(mix)
    pairs = [(_timed(before, call), _timed(after, call)) for call in calls]
    expected, actual = [output for (output, _), _ in pairs], [output for _, (output, _) in pairs]
    output_db = _output_db(f"merged graph {graphs[1].parent.name}", expected, actual)
    effects = [EffectEnergy.of(output - zero, merged - zero) for zero, output, merged in zip(base, expected, actual, strict=True)]
    energy = sum(effects, EffectEnergy())
    return MergedLikeness(
        output_db=output_db,
        effect_db=energy.sqnr_db(),
        effect_gain=energy.gain if energy.true else 1.0,
        slots_ms=min(milliseconds for (_, milliseconds), _ in pairs),
        merged_ms=min(milliseconds for _, (_, milliseconds) in pairs),
        calls=len(calls),
    )


def _timed(session: Session, call: Inputs) -> tuple[Output, float]:
    """An output, and its milliseconds."""
    start = perf_counter()
    output = session.run(call)
    return output.astype(np.float64), (perf_counter() - start) * 1e3


def _output_db(where: str, expected: Sequence[Output], actual: Sequence[Output]) -> float:
    if any(one.shape != other.shape or not np.isfinite(other).all() for one, other in zip(expected, actual, strict=True)):
        raise BackendError(mismatch(where, f"finite numbers {expected[0].shape}", "others", "report it with the bundle's name"))
    output_db = array_sqnr_db(np.stack(expected), np.stack(actual))
    if output_db < LEAST_DB:
        found = f"others, {output_db:.1f} dB from them"
        raise BackendError(mismatch(where, "the outputs of the graph with slots", found, "use a smaller weight, or --weight-bits 16"))
    return output_db
