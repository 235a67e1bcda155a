"""A pipeline against a bundle's vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from quad.core.errors import QuadError, one_line
from quad.core.progress import Progress, silent
from quad.runtime.conformance import answer
from quad.runtime.conformance.answer import Means
from quad.runtime.conformance.vectors import ConformanceVectors, NoiseVector, SamplerVector, TextVector, Values, distance
from quad.runtime.pipeline import QuadPipeline

FAILED = float("inf")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One vector and what came of it.

    Args:
        kind: `noise`, `text`, `call`, `sampler` or `picture`.
        distance: of the answer from the vector, infinite where there is none or it has another shape.
        tolerance: what the distance may be.
        error: in place of an answer.
    """

    kind: str
    name: str
    distance: float
    tolerance: float
    error: str = ""

    @property
    def passes(self) -> bool:
        """Whether the answer is near enough."""
        return self.distance <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One vector that is still to be tried."""

    kind: str
    name: str
    tolerance: float
    distance: Callable[[], float]

    def check(self) -> Check:
        """An answer that raises is one that fails."""
        try:
            away, error = self.distance(), ""
        except QuadError as raised:
            away, error = FAILED, one_line(str(raised))
        return Check(kind=self.kind, name=self.name, distance=away, tolerance=self.tolerance, error=error)


def verify(pipe: QuadPipeline, conformance: ConformanceVectors, progress: Progress = silent) -> list[Check]:
    """Every vector against the pipeline's own answer; the pipeline's adapters are as they were afterwards."""
    trials = list(_trials(pipe, conformance))
    checks = []
    for index, trial in enumerate(trials):
        progress(trial.kind, index / len(trials))
        checks.append(trial.check())
    progress("done", 1.0)
    return checks


def _trials(pipe: QuadPipeline, conformance: ConformanceVectors) -> Iterator[_Trial]:
    vectors = conformance.vectors
    for noise in vectors.noise:
        yield _Trial(kind="noise", name=f"seed {noise.seed}", tolerance=0.0, distance=partial(_noise_distance, noise))
    for text in vectors.texts:
        name = repr(text.prompt)
        yield _Trial(kind="text", name=name, tolerance=text.tolerance, distance=partial(_text_distance, pipe, text))
    for call in vectors.calls:
        name = call.graph if call.adapter is msgspec.UNSET else f"{call.graph} with {call.adapter}"
        answered = partial(answer.call_means, pipe, call, conformance)
        yield _Trial(kind="call", name=name, tolerance=call.tolerance, distance=partial(_means_distance, call.values, answered))
    for sampler in vectors.samplers:
        away = partial(_sampler_distance, pipe, sampler, conformance)
        yield _Trial(kind="sampler", name=sampler.name, tolerance=sampler.tolerance, distance=away)
    for picture in vectors.pictures:
        answered = partial(answer.picture_means, pipe, picture, conformance)
        away = partial(_means_distance, picture.values, answered)
        yield _Trial(kind="picture", name=picture.task, tolerance=picture.tolerance, distance=away)


def _noise_distance(vector: NoiseVector) -> float:
    """0 for the same bits."""
    return 0.0 if answer.noise_digest(answer.noise(vector)) == vector.sha256 else FAILED


def _text_distance(pipe: QuadPipeline, vector: TextVector) -> float:
    """Of the hidden states; infinite where a token or a weight is another."""
    prompt = answer.tokens(pipe, vector)
    if answer.ids_and_weights(prompt) != (vector.ids, vector.weights):
        return FAILED
    return distance(vector.values, answer.text_means(pipe, prompt))


def _means_distance(values: Values, answered: Callable[[], Means]) -> float:
    return distance(values, answered())


def _sampler_distance(pipe: QuadPipeline, vector: SamplerVector, conformance: ConformanceVectors) -> float:
    """Largest difference of one number of one state; infinite where it calls at other timesteps."""
    timesteps, states = answer.sampler_states(vector, pipe.bundle.manifest.schedule)
    expected = conformance.tensor(vector.states)
    if states.shape != expected.shape or not np.allclose(timesteps, vector.timesteps, rtol=1e-6, atol=1e-6):
        return FAILED
    return float(np.abs(states - expected).max(initial=0.0))
