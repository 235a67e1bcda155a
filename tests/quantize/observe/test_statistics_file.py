"""Statistics and probes as pieces of a file: what is read back goes on as if nothing had been between."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from quad.quantize.observe.observers import Statistics
from quad.quantize.observe.probes import Probe
from quad.quantize.observe.probes_file import probes_piece, read_probes_piece
from quad.quantize.observe.statistics_file import join_pieces, source_piece


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def facts(statistics: Statistics) -> Any:
    return [
        (component, name, source, site.histogram.fields, site.histogram.counts.tolist(), site.channel_mean().tolist())
        for component, sites in statistics.sites.items()
        for name, by_source in sites.items()
        for source, site in by_source.items()
    ]


def through_json(piece: tuple[Any, Any]) -> tuple[Any, Any]:
    value, arrays = piece
    return json.loads(json.dumps(value)), arrays


@pytest.fixture
def statistics() -> Statistics:
    filled = Statistics()
    for number, (name, source) in enumerate([("b.in", "ink"), ("a.in", "ink"), ("a.in", "base")]):
        filled.record("unet", name, source, draw(number, 2, 3, 4, 4))
    return filled


def test_statistics_come_back_in_their_order_and_go_on_to_the_same(statistics: Statistics) -> None:
    pieces = {source: through_json(source_piece(statistics, source, 1, number)) for number, source in enumerate(["base", "ink"], 1)}
    again = join_pieces(pieces)
    assert facts(again) == facts(statistics)
    for one in (again, statistics):
        one.record("unet", "b.in", "ink", 100.0 * draw(9, 2, 3, 4, 4))
    assert facts(again) == facts(statistics)


def test_no_pieces_are_empty_statistics() -> None:
    assert join_pieces({}).sites == {}


def test_probes_come_back_with_and_without_outputs() -> None:
    inputs = {"sample": draw(0, 2, 4, 4, 4), "timestep": draw(1, 1), "encoder_hidden_states": draw(2, 2, 3, 5)}
    with_output = Probe(source="ink", task="sketch", run=0, inputs=inputs, sigma_t=0.5, expected=draw(3, 2, 4, 4, 4))
    without = Probe(source="ink", task="sketch", run=1, inputs=inputs, sigma_t=0.25)
    (first, second) = read_probes_piece(*through_json(probes_piece({"ink": [with_output, without]})))["ink"]
    for read, written in ((first, with_output), (second, without)):
        assert (read.source, read.task, read.run, read.sigma_t) == (written.source, written.task, written.run, written.sigma_t)
        assert all(np.array_equal(read.inputs[name], inputs[name]) for name in inputs)
    assert first.expected is not None
    assert np.array_equal(first.expected, with_output.expected)
    assert second.expected is None
