"""The runs of a calibration: every sample at every size. Along a few of them layers' inputs are counted, to round their weights by.

Runs are made side by side, counted ones one after the other among them: a sum of floats depends on its order. A build that goes on, or
has several processes, makes the counted runs again when it rounds, with the same noise, and has the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from threading import Condition
from typing import final

import torch

from quad.build.calls.call_recorder import spread
from quad.build.open_and_slot import SlottedModel
from quad.core.processes import process_count
from quad.core.progress import Progress, silent, with_progress
from quad.quantize.encodings.rules import weight_bits
from quad.quantize.observe.calibrate import CalibrationOptions, CalibrationSample, calibration_feeds
from quad.quantize.observe.input_grams import Grams, gathering
from quad.quantize.observe.observers import Feed
from quad.quantize.observe.short_floats import computing_in, weights_in

COUNTED_RUNS = 8  # pictures that are made to see inputs by
_BITS = 8  # of weights that are compensated: at 16 there is nothing to gain
_IS_COUNTED: ContextVar[bool] = ContextVar("quad_is_counted", default=False)  # whether the run of this thread is


@final
class CalibrationRuns:
    """All runs of a calibration in their order: counted ones take turns with others, which a second core makes meanwhile."""

    def __init__(self, model: SlottedModel, options: CalibrationOptions | None = None) -> None:
        self._model, self._grams = model, Grams()
        every = [
            feed
            for base in model.measured_at_each
            for feed in calibration_feeds(base, model.networks, model.table, model.adapters, model.samples, options)
        ]
        places = few_places(model.samples)
        self._counted, others = [every[place] for place in places], [feed for place, feed in enumerate(every) if place not in places]
        self.every: Sequence[Feed] = [feed for pair in zip_longest(self._counted, others) for feed in pair if feed is not None]

    @contextmanager
    def counting(self) -> Iterator[Sequence[Feed]]:
        """The runs, all to be made in the block, after which `take_grams` knows what they have counted; where that can be.

        Of several processes each makes some of the runs, and a build that goes on the last ones.
        """
        if process_count() > 1 or self._model.cache.goes_on:
            yield self.every
            return
        turns, numbers = _Turns(), {id(feed): number for number, feed in enumerate(self._counted)}

        def counted(feed: Feed) -> Feed:
            return replace(feed, run=partial(turns.run, numbers[id(feed)], feed.run)) if id(feed) in numbers else feed

        with gathering(self._model.networks, self._is_rounded, _IS_COUNTED.get) as grams:
            yield [counted(feed) for feed in self.every]
        self._grams = grams

    def take_grams(self, progress: Progress = silent) -> Grams:
        """The inputs of layers along the counted runs, handed over once; where nothing was counted, the runs are made for it."""
        grams, self._grams = self._grams, Grams()
        return grams or gather_grams(self._model, self._is_rounded, with_progress(self._counted, len(self._counted), "round", progress))

    def _is_rounded(self, component: str, path: str) -> bool:
        """Whether the weight of a layer will be rounded, which is known before it has an encoding."""
        return (component, path) not in self._model.four_bit_layers and weight_bits(component, path) == _BITS


def gather_grams(model: SlottedModel, chosen: Callable[[str, str], bool], feeds: Iterable[Feed]) -> Grams:
    """The inputs of layers along runs, by component and path; of those that the runs reach.

    Args:
        chosen: says of a component and the path of a layer in it whether its inputs are counted.
    """
    float_type = model.statistics_type
    with (
        torch.no_grad(),
        computing_in(float_type),
        weights_in(float_type, model.networks.values()),
        gathering(model.networks, chosen) as grams,
    ):
        for feed in feeds:
            feed.run()
    return grams


def few_places(samples: Sequence[CalibrationSample]) -> list[int]:
    """Places of the first sample of each task and adapter, `COUNTED_RUNS` at most."""
    first: dict[tuple[str, str | None], int] = {}
    for place, sample in enumerate(samples):
        first.setdefault((sample.task, sample.adapter), place)
    return spread(list(first.values()), COUNTED_RUNS)


@final
class _Turns:
    """Work of several threads, one after the other in the order of its numbers."""

    def __init__(self) -> None:
        self._next, self._changed = 0, Condition()

    def run(self, number: int, work: Callable[[], object]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        token = _IS_COUNTED.set(True)
        try:
            work()
        finally:
            _IS_COUNTED.reset(token)
            with self._changed:
                self._next += 1
                self._changed.notify_all()
