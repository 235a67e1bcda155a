"""A pipeline's answer to each kind of vector: recording stores it, verifying compares it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.manifest import NoiseSchedule
from quad.core.slots import TEXT_ENCODER
from quad.runtime.conditioning.prompt_chunks import PromptTokens, read_prompt
from quad.runtime.conditioning.text_features import text_features
from quad.runtime.conformance.vectors import GRID, CallVector, ConformanceVectors, NoiseVector, PictureVector, SamplerVector, TextVector
from quad.runtime.engines.graph import Graph
from quad.runtime.golden_outputs import block_means
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.request import Request
from quad.runtime.samplers import plan_sampling

Float = NDArray[np.float32]
Means = NDArray[np.float64]


def noise(vector: NoiseVector) -> Float:
    """The first noise of a seed, as a call of the pipeline draws it."""
    return np.random.default_rng(vector.seed).standard_normal(vector.shape).astype(np.float32)


def noise_digest(values: Float) -> str:
    """SHA-256 of the numbers, little-endian."""
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


def tokens(pipe: QuadPipeline, vector: TextVector) -> PromptTokens:
    """Of the prompt."""
    return read_prompt(pipe.stages.tokenizer, vector.prompt, "plain" if vector.prompt_syntax == "plain" else "a1111", pipe.embeddings.words)


def ids_and_weights(prompt: PromptTokens) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """Of each chunk, as a vector has them."""
    chunks = prompt.chunks
    return tuple(tuple(map(int, chunk.ids[0])) for chunk in chunks), tuple(tuple(map(float, chunk.weights)) for chunk in chunks)


def text_means(pipe: QuadPipeline, prompt: PromptTokens) -> Means:
    """Block means of a prompt's hidden states by the base."""
    with _bound(pipe, TEXT_ENCODER, {}) as encoder:
        hidden = text_features(encoder, prompt, pipe.stages.tokenizer.text)
    return block_means(hidden[None], GRID)


def call_means(pipe: QuadPipeline, vector: CallVector, vectors: ConformanceVectors) -> Means:
    """Block means of a graph's output with the vector's adapter."""
    weights = {} if vector.adapter is msgspec.UNSET else {vector.adapter: 1.0}
    with _bound(pipe, vector.graph, weights) as graph:
        output = graph.run({name: vectors.tensor(tensor) for name, tensor in vector.inputs.items()})
    return block_means(output, GRID)


def sampler_states(vector: SamplerVector, schedule: NoiseSchedule) -> tuple[tuple[float, ...], Float]:
    """Timesteps of the calls, and the state after each, `(calls, *shape)`."""
    rng, timesteps, states = np.random.default_rng(vector.seed), list[float](), list[Float]()
    first = rng.standard_normal(vector.shape).astype(np.float32)
    outputs = _draws(vector.output_seed, vector.shape)

    def network(_: NDArray[np.float32], timestep: float) -> Float:
        timesteps.append(timestep)
        return next(outputs)

    plan_sampling(vector.spec, schedule, rng).run(network, first, lambda index, timestep, state: states.append(state))
    return tuple(timesteps), np.stack(states)


def picture_means(pipe: QuadPipeline, vector: PictureVector, vectors: ConformanceVectors) -> Means:
    """Block means of a picture of the vector's task, made with the task's own adapter."""
    image, mask = (None if name is msgspec.UNSET else Image.fromarray(vectors.tensor(name)) for name in (vector.image, vector.mask))
    request = Request(
        prompt=vector.prompt, task=vector.task, seed=vector.seed, num_inference_steps=vector.steps, image=image, mask_image=mask,
    )  # fmt: skip
    pixels = pipe.finish(pipe.prepare(request), output_type="np").images
    return block_means(np.asarray(pixels).transpose(0, 3, 1, 2), GRID)


@contextmanager
def _bound(pipe: QuadPipeline, name: str, weights: Mapping[str, float]) -> Iterator[Graph]:
    """A graph while it is loaded, with these adapters."""
    _, mix = pipe.switch.resolve_mix(Request(task=next(iter(pipe.tasks)), adapters=weights))
    graph = pipe.graph(name)
    with graph.loaded():
        graph.bind(mix)
        yield graph


def _draws(seed: int, shape: tuple[int, ...]) -> Iterator[Float]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.standard_normal(shape).astype(np.float32)
