"""Chips as a build is asked for them, and what was done for each, in the words that `bundle.json` records and `quad inspect` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

EMULATED = "compiled and run in emulation"
ON_CPU_DEVICE = "compiled and run on the CPU device"
ACCEPTED = "accepted by the plugin's front end, not compiled"
NOT_COMPILED = "not compiled"
RUNS_ON_CPU = "runs on LiteRT's CPU"
CPU = "any CPU"  # the name, among chips, of what needs none

_LEAST_FIRST = (NOT_COMPILED, ACCEPTED, RUNS_ON_CPU, ON_CPU_DEVICE, EMULATED)


def of_all(graphs: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Chip -> the least that was done for one of a bundle's graphs.

    Args:
        graphs: of each, chip -> what was done.
    """
    states: dict[str, str] = {}
    for graph in graphs:
        for chip, state in graph.items():
            states[chip] = min(states.get(chip, state), state, key=_LEAST_FIRST.index)
    return states


def soc_names(option: str | Sequence[str] | None) -> tuple[str, ...]:
    """The chips that `--soc` names, one or several."""
    return (option,) if isinstance(option, str) else tuple(option or ())
