"""One call for several pictures: prompts times pictures of each, one request each, with seeds of their own.

Graphs make one picture at a time. Picture k of a call is, bit for bit, that of a call for it alone: with seed `seed + k`, or with the
generator that was given, as the pictures before it left it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UsageError, mismatch
from quad.runtime.arguments import one_of, whole_number
from quad.runtime.request import Request
from quad.runtime.stages import OutputType, PipelineOutput

MOST_PICTURES = 10_000


@dataclass(frozen=True, kw_only=True)
class BatchWords:
    """The part of a call that says how many pictures there are, by the names of `QuadPipeline.__call__`."""

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] | None
    num_images_per_prompt: int = 1
    generator: Any = None


def expand(common: Request, words: BatchWords) -> tuple[list[Request], tuple[str, ...]]:
    """A request for each picture, the pictures of one prompt together, and notes.

    Args:
        common: what all pictures share; its seed is the first one's, its latents are those of all, `(n, c, h, w)`.

    Raises:
        UsageError: no picture or too many, lists that do not go together, or generators that are none.
        InputError: latents for another number of pictures.
    """
    unwanted = "" if words.negative_prompt is None else words.negative_prompt
    prompts, negatives = _texts("prompt", words.prompt), _texts("negative_prompt", unwanted)
    if isinstance(unwanted, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise UsageError(mismatch("negative_prompt", f"one string, or {len(prompts)} as prompt", len(negatives), "give one for each"))
    each, most = words.num_images_per_prompt, MOST_PICTURES // max(1, len(prompts))
    if isinstance(each, bool) or not isinstance(each, int | np.integer) or not 1 <= each <= most:
        raise UsageError(mismatch("num_images_per_prompt", f"a whole number, 1 to {most}", repr(each), "choose one in that range"))
    pairs = [pair for pair in zip(prompts, negatives, strict=True) for _ in range(each)]
    if not pairs:
        raise UsageError(mismatch("prompt", "one string or more", "an empty list", "give one"))
    sources, notes = _sources(words.generator, whole_number("seed", common.seed), len(pairs))
    latents = _latents(common.latents, len(pairs))
    return [
        replace(
            common,
            prompt=prompt,
            negative_prompt=negative,
            seed=seed,
            generator=generator,
            latents=latents[index],
        )
        for index, ((prompt, negative), (seed, generator)) in enumerate(zip(pairs, sources, strict=True))
    ], notes


def check_output(output_type: str) -> None:
    """Refuse a type of output that there is not.

    Raises:
        UsageError: names the way.
    """
    is_torch = isinstance(output_type, str) and output_type == "pt"
    way = "take np and torch.from_numpy(pictures).permute(0, 3, 1, 2)" if is_torch else "choose one of these"
    one_of("output_type", output_type, get_args(OutputType), way)


def joined(outputs: Sequence[PipelineOutput], notes: Sequence[str]) -> PipelineOutput:
    """The pictures of one call together: times added up, each note once, the first one's seed."""
    first = outputs[0]
    images = [output.images for output in outputs]
    timings: dict[str, float] = {}
    for output in outputs:
        for name, value in output.timings_ms.items():
            timings[name] = timings.get(name, 0.0) + value
    return replace(
        first,
        images=[picture for pictures in images for picture in pictures] if isinstance(first.images, list) else np.concatenate(images),
        notes=tuple(dict.fromkeys((*(note for output in outputs for note in output.notes), *notes))),
        timings_ms=timings,
        seeds=tuple(seed for output in outputs for seed in output.seeds),
        facts=tuple(facts for output in outputs for facts in output.facts),
    )


def _texts(name: str, given: Any) -> list[str]:
    """One text or several, as a list of texts."""
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping) else [given]
    for text in listed:
        if not isinstance(text, str):
            raise UsageError(mismatch(name, "one string, or a list of strings", type(text).__name__, "give texts"))
    return listed


def _latents(given: Any, count: int) -> Sequence[NDArray[Any] | None]:
    """Those of each picture, `(1, c, h, w)`; None where none were given."""
    if given is None:
        return [None] * count
    try:
        array = np.asarray(given)
        found = f"{array.dtype} {array.shape}"
    except (TypeError, ValueError, RuntimeError):  # lists of several lengths, a tensor that is on a device
        array, found = np.empty(0), type(given).__name__
    if array.ndim != 4 or len(array) != count or array.dtype.kind not in "fiu":
        raise InputError(mismatch("latents", f"an array of floats ({count}, c, h, w)", found, "draw as many as there are pictures"))
    return [array[index : index + 1] for index in range(count)]


def _sources(generator: Any, seed: int, count: int) -> tuple[list[tuple[int, np.random.Generator | None]], tuple[str, ...]]:
    """Seed and generator of each picture, the generator None where the seed rules."""
    if generator is None:
        return [(seed + index, None) for index in range(count)], ()
    listed = list(generator) if isinstance(generator, list | tuple) else None
    if listed is not None and len(listed) != count:
        raise UsageError(mismatch("generator", f"one, or {count} as there are pictures", len(listed), "give one for each"))
    sources = [_source(each, 0) for each in listed] if listed is not None else [_source(generator, index) for index in range(count)]
    taken = [str(number) for number, source in sources if source is None]
    note = f"generator: its seed was taken ({', '.join(taken[:4])}), the noise is NumPy's and another than torch's"
    return sources, (note,) if taken else ()


def _source(generator: Any, index: int) -> tuple[int, np.random.Generator | None]:
    """A NumPy generator as it is; of torch's, which is not imported here, its seed."""
    if isinstance(generator, np.random.Generator):
        return 0, generator
    initial_seed = getattr(generator, "initial_seed", None)
    if callable(initial_seed):
        return int(initial_seed()) + index, None
    found = type(generator).__name__
    raise UsageError(mismatch("generator", "numpy.random.default_rng(seed), or a list of them", found, "give one, or seed="))
