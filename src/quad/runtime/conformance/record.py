"""Vectors of a bundle as it is, recorded by the engine that it was proven with.

Tolerances were measured between the engines, numbers of threads and memory plans that there are: docs/results.md, "Conformance".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from queue import SimpleQueue
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.component_call import UNET_INPUTS
from quad.core.errors import QuadError, UnsupportedError, UsageError
from quad.core.extra_graphs import TINY_DECODER
from quad.core.manifest import PROBES_FILE, SamplerSpec, TaskSpec
from quad.core.picture_size import component_of, graph_name
from quad.core.slots import UNET
from quad.runtime.calibration_sample import CalibrationSample
from quad.runtime.conditioning.mask import read_mask
from quad.runtime.conditioning.picture import open_picture, to_rgb
from quad.runtime.conformance import answer
from quad.runtime.conformance.drawn import decoder_latent, disc, drawn_picture, encoder_image
from quad.runtime.conformance.vectors import (
    CallVector,
    ConformanceVectors,
    NoiseVector,
    PictureVector,
    SamplerVector,
    TextVector,
    Vectors,
)
from quad.runtime.golden_outputs import read_probes, rounded
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.samplers.names import SAMPLER_NAMES, named_sampler

_LOG = logging.getLogger(__name__)

# Of the RMS of the block means. With activations of 8 bits a rounding tie that goes the other way shows: an input moved by 1e-7 of itself
# moves a call by up to 0.027. Two adapters differ by 0.097 at least.
TEXT_TOLERANCE = 0.01
CALL_TOLERANCE, CALL_TOLERANCE_8_BITS = 0.01, 0.06
PICTURE_TOLERANCE, PICTURE_TOLERANCE_8_BITS = 0.02, 0.08
SAMPLER_TOLERANCE = 1e-5
SEEDS = (0, 1, 2**32 + 1)
SIDE = 2  # of a sampler's small latent
STEPS = 4
PICTURE_STEPS = 2  # a call of a large U-Net takes seconds
_OUTPUT_SEED = 10_000
Draft = TypeVar("Draft")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Recording:
    """Vectors while they are recorded.

    Args:
        tensors: what they name so far.
    """

    pipe: QuadPipeline
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def so_far(self) -> ConformanceVectors:
        return ConformanceVectors(Vectors(), self.tensors)

    @cached_property
    def eight_bits(self) -> bool:
        return self.pipe.bundle.profile.has_eight_bit_activations(UNET)

    @property
    def picture_tolerance(self) -> float:
        return PICTURE_TOLERANCE_8_BITS if self.eight_bits else PICTURE_TOLERANCE

    def draft(self, graph: str, inputs: Mapping[str, NDArray[Any]], adapter: str | None = None) -> CallVector:
        """One call of a graph without its answer; inputs of equal calls are stored once."""
        names = {name: f"calls/{component_of(graph)}/{name}" for name in inputs}
        self.tensors.update({names[name]: array for name, array in inputs.items()})
        return CallVector(
            graph=graph, adapter=adapter or msgspec.UNSET, inputs=names, values=(),
            tolerance=CALL_TOLERANCE_8_BITS if component_of(graph) == UNET and self.eight_bits else CALL_TOLERANCE,
        )  # fmt: skip


def record_vectors(
    pipe: QuadPipeline, samples: Sequence[CalibrationSample] = (), beside: Sequence[QuadPipeline] = ()
) -> ConformanceVectors:
    """All vectors of a bundle's first size.

    Args:
        samples: whose prompts and pictures are used, of each task the first; a task without one gets a drawn picture.
        beside: further pipelines over the same bundle, which answer some of the calls and make some of the pictures at the same time.
    """
    recording, pipes = _Recording(pipe), (pipe, *beside)
    vectors = Vectors(
        noise=tuple(_noise(pipe)),
        texts=tuple(_texts(pipe, samples)),
        calls=tuple(_calls(recording, pipes)),
        samplers=tuple(_samplers(recording)),
        # A bundle that requires a chip runs in its emulator where it is built: seconds a call, so no whole pictures.
        pictures=() if pipe.bundle.manifest.requires else tuple(_pictures(recording, samples, pipes)),
    )
    return replace(recording.so_far, vectors=vectors)


def _noise(pipe: QuadPipeline) -> Iterable[NoiseVector]:
    for seed in SEEDS:
        draft = NoiseVector(seed=seed, shape=_latent_shape(pipe), sha256="", first=())
        values = answer.noise(draft)
        yield msgspec.structs.replace(draft, sha256=answer.noise_digest(values), first=rounded(values.ravel()[:8]))


def _texts(pipe: QuadPipeline, samples: Sequence[CalibrationSample]) -> Iterable[TextVector]:
    words = next((sample.prompt for sample in samples if sample.prompt), "a picture")
    for prompt, syntax in (("", "plain"), (words, "plain"), (f"({words}:1.3), [{words}] BREAK {words}", "a1111")):
        draft = TextVector(prompt=prompt, prompt_syntax=syntax, ids=(), weights=(), values=(), tolerance=TEXT_TOLERANCE)
        prompt_tokens = answer.tokens(pipe, draft)
        ids, weights = answer.ids_and_weights(prompt_tokens)
        values = rounded(answer.text_means(pipe, prompt_tokens))
        yield msgspec.structs.replace(draft, ids=ids, weights=weights, values=values)


def _calls(recording: _Recording, pipes: Sequence[QuadPipeline]) -> list[CallVector]:
    drafts = list(_call_drafts(recording))
    means = _dealt(pipes, drafts, lambda pipe, draft: rounded(answer.call_means(pipe, draft, recording.so_far)))
    return [msgspec.structs.replace(draft, values=values) for draft, values in zip(drafts, means, strict=True)]


def _call_drafts(recording: _Recording) -> Iterable[CallVector]:
    pipe = recording.pipe
    image, latent = pipe.graph("vae_encoder").inputs["image"], _latent_shape(pipe)
    yield recording.draft("vae_encoder", {"image": encoder_image(image[2] or 1, image[3] or 1)})
    yield recording.draft("vae_decoder", {"latent": decoder_latent(latent)})
    if TINY_DECODER in pipe.bundle.manifest.components:
        yield recording.draft(TINY_DECODER, {"latent": decoder_latent(latent)})
    unet = _unet_inputs(pipe)
    yield recording.draft(UNET, unet)
    for adapter in pipe.bundle.manifest.adapters:
        yield recording.draft(graph_name(UNET, None, pipe.switch.store.group_of({adapter: 1.0})), unet, adapter)


def _unet_inputs(pipe: QuadPipeline) -> dict[str, NDArray[Any]]:
    """The first stored call; noise where the bundle has none."""
    if PROBES_FILE in pipe.bundle.manifest.files:
        return {name: np.array(array) for name, array in read_probes(pipe.bundle)[0].items()}
    rng = np.random.default_rng(0)
    shapes = {name: [axis or 1 for axis in pipe.graph(UNET).inputs[name]] for name in UNET_INPUTS}
    inputs: dict[str, NDArray[Any]] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return inputs | {"timestep": np.full(shapes["timestep"], 500, np.float32)}


def _samplers(recording: _Recording) -> Iterable[SamplerVector]:
    manifest = recording.pipe.bundle.manifest
    shape = (1, manifest.latent.channels, SIDE, SIDE)
    own = next(iter(manifest.tasks.values())).sampler
    specs: dict[str, SamplerSpec] = {f"task {task}": spec.sampler for task, spec in manifest.tasks.items()}
    specs |= {name: named_sampler(f"{name}:{STEPS}", own, manifest.samplers or {}) for name in SAMPLER_NAMES}
    for number, (name, spec) in enumerate(specs.items()):
        draft = SamplerVector(
            name=name, spec=spec, shape=shape, seed=number, output_seed=_OUTPUT_SEED + number, timesteps=(),
            states=f"samplers/{name}", tolerance=SAMPLER_TOLERANCE,
        )  # fmt: skip
        try:
            timesteps, states = answer.sampler_states(draft, manifest.schedule)
        except (UnsupportedError, UsageError):  # not with this schedule, and the pipeline says so as well
            continue
        recording.tensors[draft.states] = states
        yield msgspec.structs.replace(draft, timesteps=timesteps)


def _pictures(recording: _Recording, samples: Sequence[CalibrationSample], pipes: Sequence[QuadPipeline]) -> Iterable[PictureVector]:
    drafts = [_picture_draft(recording, task, samples) for task in recording.pipe.bundle.manifest.tasks]
    pictures = _dealt(pipes, drafts, lambda pipe, draft: _recorded_picture(pipe, draft, recording.so_far))
    return [picture for picture in pictures if picture is not None]


def _dealt(pipes: Sequence[QuadPipeline], drafts: Sequence[Draft], record: Callable[[QuadPipeline, Draft], Answer]) -> list[Answer]:
    """The record of each draft, in order; every pipeline takes the next one when it is free."""
    free = SimpleQueue[QuadPipeline]()
    for pipe in pipes:
        free.put(pipe)

    def with_free_pipe(draft: Draft) -> Answer:
        pipe = free.get()
        try:
            return record(pipe, draft)
        finally:
            free.put(pipe)

    with ThreadPoolExecutor(len(pipes), "quad-vectors") as pool:
        return list(pool.map(with_free_pipe, drafts))


def _picture_draft(recording: _Recording, task: str, samples: Sequence[CalibrationSample]) -> PictureVector:
    spec = recording.pipe.bundle.manifest.tasks[task]
    example = next(
        (sample for sample in samples if sample.task == task and sample.adapter is None), CalibrationSample(task=task, prompt="")
    )
    steps = spec.sampler.steps if spec.sampler.kind == "olss" else min(PICTURE_STEPS, spec.sampler.steps)
    image, mask = _stored_pictures(recording, task, spec, example)
    return PictureVector(
        task=task, prompt=example.prompt, seed=0, steps=steps, image=image, mask=mask, values=(), tolerance=recording.picture_tolerance
    )


def _recorded_picture(pipe: QuadPipeline, draft: PictureVector, so_far: ConformanceVectors) -> PictureVector | None:
    """The vector; None, with a warning, where the task makes no picture."""
    try:
        return msgspec.structs.replace(draft, values=rounded(answer.picture_means(pipe, draft, so_far)))
    except QuadError as error:
        _LOG.warning("conformance: no picture of task %s, %s", draft.task, error)
        return None


def _stored_pictures(
    recording: _Recording, task: str, spec: TaskSpec, sample: CalibrationSample
) -> tuple[str | msgspec.UnsetType, str | msgspec.UnsetType]:
    """Names of a task's picture and mask among the tensors, at the bundle's size."""
    if not spec.reads_picture:
        return msgspec.UNSET, msgspec.UNSET
    size = recording.pipe.bundle.manifest.picture_size
    image, mask = f"pictures/{task}/image", f"pictures/{task}/mask"
    given = None if sample.image is None else to_rgb(open_picture(sample.image))[0]
    pixels = drawn_picture(*size.grid) if given is None else np.asarray(Image.fromarray(given).resize((size.width, size.height)))
    recording.tensors[image] = pixels.astype(np.uint8)
    if spec.mask != "input":
        return image, msgspec.UNSET
    hole = disc(*size.grid)
    if given is not None and sample.mask is not None:
        rows, columns = given.shape[:2]
        whole = Image.fromarray(read_mask(sample.mask, columns, rows)[0])
        hole = np.asarray(whole.resize((size.width, size.height), Image.Resampling.NEAREST))
    recording.tensors[mask] = np.where(hole, np.uint8(255), np.uint8(0))
    return image, mask


def _latent_shape(pipe: QuadPipeline) -> tuple[int, ...]:
    manifest = pipe.bundle.manifest
    return (1, manifest.latent.channels, *manifest.latent.grid(manifest.picture_size))
