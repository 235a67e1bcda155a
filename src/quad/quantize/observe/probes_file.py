"""Probes as a JSON value and arrays, and back.

The value is source -> `[task, run, sigma_t, input names]` of each probe in order. Arrays: `<source>/<index>/<input>`, and
`<source>/<index>/output` and `<source>/<index>/without` where the probe knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from quad.quantize.observe.probe import Probe, Probes
from quad.quantize.observe.statistics_file import Piece
from quad.quantize.processes.dealt import Codec

_OUTPUT, _WITHOUT = "output", "without"


def probes_piece(probes: Probes) -> Piece:
    """The value and the arrays of all probes."""
    rows: dict[str, list[list[Any]]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for source, calls in probes.items():
        rows[source] = [[probe.task, probe.run, probe.sigma_t, sorted(probe.inputs)] for probe in calls]
        for index, probe in enumerate(calls):
            arrays |= {f"{source}/{index}/{name}": array for name, array in probe.inputs.items()}
            outputs = {_OUTPUT: probe.expected, _WITHOUT: probe.without}
            arrays |= {f"{source}/{index}/{name}": output for name, output in outputs.items() if output is not None}
    return rows, arrays


def read_probes_piece(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Probes:
    """The probes that `probes_piece` wrote."""

    def probe(source: str, index: int, task: str, run: int, sigma_t: float, names: list[str]) -> Probe:
        inputs = {name: arrays[f"{source}/{index}/{name}"] for name in names}
        output, without = (arrays.get(f"{source}/{index}/{name}") for name in (_OUTPUT, _WITHOUT))
        return Probe(source=source, task=task, run=run, inputs=inputs, sigma_t=sigma_t, expected=output, without=without)

    return {source: [probe(source, index, *row) for index, row in enumerate(rows)] for source, rows in value.items()}


def _of_one_source(packed: Piece) -> list[Probe]:
    return [probe for calls in read_probes_piece(*packed).values() for probe in calls]


# What one source's runs have recorded.
RECORDED = Codec[list[Probe]](lambda calls: probes_piece({calls[0].source: calls} if calls else {}), _of_one_source)
