"""`quad run`: pictures from a bundle, by the device runtime alone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quad.cli.options import is_pack, weighted_names, words_of_files
from quad.cli.shared_options import (
    BundleDir,
    Embeddings,
    EngineName,
    FloatType,
    GuidanceInterval,
    Mark,
    MemoryPlan,
    Reuse,
    Sign,
    StoreDir,
    Threads,
    TinyDecoder,
    png_options,
)  # fmt: skip
from quad.cli.show import Json, note, progress_bar, result
from quad.cli.size_options import Crop, OriginalSize, TargetSize, size_conditions
from quad.core.errors import UsageError, mismatch
from quad.core.manifest import BUNDLE_FILE, MOST_STEPS
from quad.core.memory import peak_ram_bytes
from quad.core.picture_size import parse_sizes
from quad.core.storage.files import require_file, require_writable, write_bytes
from quad.core.storage.install_pointers import store_beside
from quad.core.storage.reading import is_directory
from quad.core.storage.replaced import unless_replaced

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from quad.runtime.pipeline import QuadPipeline
    from quad.runtime.provenance.png import PngOptions
    from quad.runtime.stages import PipelineOutput

MAX_SEED = 2**32
MOST_PICTURES = 10_000  # of `quad.runtime.batch`, which is imported when a picture is made
_BATCH = ("prompt", "negative_prompt", "num_images_per_prompt")

Task = Annotated[str, typer.Option(help="What to do; an unknown name lists what the bundle can do.", metavar="TASK", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="The PNG file to write.", metavar="OUT.png", show_default=False)]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="Use this adapter instead of the task's own; repeat it to mix several.", metavar="NAME:WEIGHT", show_default=False
    ),
]
Prompt = Annotated[str, typer.Option(help="What the picture should be or become.")]
Picture = Annotated[
    Path | None, typer.Option("--image", help="Input picture: PNG, JPEG or WebP of any size.", metavar="F", show_default=False)
]
Mask = Annotated[Path | None, typer.Option("--mask", help="What to remove: white inside, black outside.", metavar="F", show_default=False)]
Strength = Annotated[
    float | None,
    typer.Option(help="How much of the given picture is made anew, up to 1; the task's own by default.", metavar="S", show_default=False),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="How strongly the prompt counts, 1 is plainly; the task's own by default.", metavar="G", show_default=False),
]
ImageGuidance = Annotated[
    float | None,
    typer.Option(
        "--image-guidance", help="How strongly the given picture counts, where the model edits by instruction.", metavar="G",
        show_default=False,
    ),
]  # fmt: skip
Negative = Annotated[str, typer.Option("--negative-prompt", help="What the picture should not show.")]
Syntax = Annotated[
    str, typer.Option(help="a1111: (word:1.2), [word] and BREAK mean something; plain: every character stands for itself.",
                      metavar="a1111|plain"),
]  # fmt: skip
Steps = Annotated[int | None, typer.Option(help="Sampler steps; the task's own number by default.", metavar="N", min=1, show_default=False)]
Sampler = Annotated[
    str | None,
    typer.Option(help="How noise becomes a picture; by default what the adapters bring, or the task's own.", metavar="KIND[:STEPS]",
                 show_default=False),
]  # fmt: skip
Parameters = Annotated[bool, typer.Option(help="Write into the picture's file how it was made, its prompt too, as A1111 does.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the noise; drawn and told by default.", metavar="N", min=0, show_default=False)]


Size = Annotated[
    str | None,
    typer.Option(help="Width and height of the picture in pixels, one of the bundle's; its first by default.", metavar="WxH",
                 show_default=False),
]  # fmt: skip
NumImages = Annotated[
    int,
    typer.Option(
        "--num-images", help="Pictures to make, one after another, of this seed and those after it.", metavar="N", min=1, max=MOST_PICTURES
    ),
]
PreviewEvery = Annotated[
    int | None,
    typer.Option(help="Also write what the picture is becoming, every N steps.", metavar="N", min=1, show_default=False),
]


def run(
    bundle: BundleDir,
    task: Task,
    output: Output,
    adapter: Adapters = None,
    prompt: Prompt = "",
    image: Picture = None,
    mask: Mask = None,
    size: Size = None,
    steps: Steps = None,
    sampler: Sampler = None,
    seed: Seed = None,
    num_images: NumImages = 1,
    preview_every: PreviewEvery = None,
    strength: Strength = None,
    guidance: Guidance = None,
    image_guidance: ImageGuidance = None,
    guidance_interval: GuidanceInterval = None,
    reuse: Reuse = 1,
    tiny_decoder: TinyDecoder = False,
    negative_prompt: Negative = "",
    prompt_syntax: Syntax = "a1111",
    original_size: OriginalSize = None,
    crop: Crop = None,
    target_size: TargetSize = None,
    embedding: Embeddings = None,
    engine: EngineName = "auto",
    float_type: FloatType = "auto",
    threads: Threads = None,
    memory: MemoryPlan = "minimal",
    store: StoreDir = None,
    parameters: Parameters = True,
    mark: Mark = False,
    sign: Sign = None,
    as_json: Json = False,
) -> None:
    """Make a picture, or several, from a bundle, without torch."""
    outputs, png = _outputs(output, num_images, preview_every), png_options(parameters=parameters, mark=mark, sign=sign)
    words = {
        "prompt": prompt, "task": task, "image": image, "mask_image": mask, "num_inference_steps": steps, "sampler": sampler,
        "strength": strength, "guidance_scale": guidance, "image_guidance_scale": image_guidance,
        "guidance_interval": guidance_interval, "reuse": reuse, "tiny_decoder": tiny_decoder, "negative_prompt": negative_prompt,
        "prompt_syntax": prompt_syntax, "seed": secrets.randbelow(MAX_SEED) if seed is None else seed, "num_images_per_prompt": num_images,
        **_size(size), "sizes": size_conditions(original_size, crop, target_size),
    }  # fmt: skip
    weights, embeddings = weighted_names("--adapter", adapter or []), words_of_files("--embedding", embedding or [])

    def generate() -> PipelineOutput:
        pipe = _open(bundle, engine=engine, float_type=float_type, threads=threads, memory=memory, store=store or store_beside(bundle))
        for word, path in embeddings:
            _note_unread(pipe.load_textual_inversion(path, word), path, (prompt, negative_prompt))
        if weights:
            names = [pipe.load_lora_weights(name) if is_pack(name) else name for name in weights]
            pipe.set_adapters(names, list(weights.values()))
        return _generate(pipe, words, _Previews(outputs=outputs, every=preview_every, tiny_decoder=tiny_decoder), partial(_save, png))

    generated = unless_replaced(bundle / BUNDLE_FILE, generate)
    for line in generated.notes:
        note(line)
    result(_json(outputs, generated), as_json, _lines(outputs, generated))


def _open(bundle: Path, **how: Any) -> QuadPipeline:
    """The pipeline, once its notes are told."""
    from quad.runtime.pipeline import QuadPipeline

    pipe = QuadPipeline.from_pretrained(bundle, **how)
    for line in pipe.notes:
        note(line)
    return pipe


def _note_unread(words: Sequence[str], path: Path, prompts: Sequence[str]) -> None:
    """A line where no prompt has a word of a textual inversion that was given for this picture."""
    from quad.runtime.conditioning.embeddings import stands_in

    if not any(stands_in(word, prompt) for word in words for prompt in prompts):
        note(f"embedding {path}: it stands for {', '.join(map(repr, words))}, of which the prompt has nothing")


def _generate(
    pipe: QuadPipeline, words: dict[str, Any], previews: _Previews, save: Callable[[Path, PipelineOutput], None]
) -> PipelineOutput:
    """The pictures of a call, each saved before the next one is made, with a bar of all their steps; they are not in the answer."""
    from quad.runtime.batch import BatchWords, expand, joined
    from quad.runtime.request import Request

    common = Request(adapters=pipe.switch.chosen, **{name: value for name, value in words.items() if name not in _BATCH})
    requests, notes = expand(common, BatchWords(**{name: words[name] for name in _BATCH}))
    steps = pipe.switch.resolve(common).spec.sampler.steps
    answers: list[PipelineOutput] = []
    with progress_bar(words["task"], words["num_images_per_prompt"] * steps) as advance:

        def on_step(_pipe: QuadPipeline, index: int, _timestep: float, tensors: dict[str, Any]) -> None:
            previews.step(pipe, index, tensors["denoised"])
            advance()

        for path, made in zip(previews.outputs, pipe.generate(requests, on_step), strict=True):
            save(path, made)
            answers.append(replace(made, images=[]))
    return joined(answers, notes)


@dataclass(kw_only=True)
class _Previews:
    """Pictures on their way, beside those that they become; a bundle without colours for its latents says so once."""

    outputs: Sequence[Path]
    every: int | None
    tiny_decoder: bool = False
    picture: int = -1

    def step(self, pipe: QuadPipeline, index: int, denoised: NDArray[np.float32]) -> None:
        """Write what is to be written after a step; index 0 begins the next picture."""
        self.picture += index == 0
        if self.every is None or (index + 1) % self.every:
            return
        try:
            preview = pipe.preview(denoised, self.tiny_decoder)
        except UsageError as error:
            note(str(error))
            self.every = None
        else:
            _write_png(_preview_of(self.outputs[self.picture], index + 1), preview)


def _outputs(output: Path, count: int, preview_every: int | None) -> list[Path]:
    """OUT.png alone; OUT-1.png and so on of several.

    Raises:
        UsageError: one of them is no name of a picture. InputError: something else than a file has its name.
        BackendError: nothing can be written there.
    """
    outputs = [output if count == 1 else output.with_name(f"{output.stem}-{number + 1}{output.suffix}") for number in range(count)]
    for path in outputs:
        _check_output(path)
    require_writable(outputs[-1] if preview_every is None else _preview_of(outputs[-1], MOST_STEPS))
    return outputs


def _preview_of(output: Path, step: int) -> Path:
    """The place of a picture on its way, beside what it becomes."""
    return output.with_name(f"{output.stem}.preview-{step:02d}.png")


def _size(text: str | None) -> dict[str, int | None]:
    """`width` and `height` of `--size`.

    Raises:
        UsageError: it is no size, or several.
    """
    if text is None:
        return {"width": None, "height": None}
    sizes = parse_sizes("--size", text)
    if len(sizes) > 1:
        raise UsageError(mismatch("--size", "one size for one picture", repr(text), "run once for each"))
    return {"width": sizes[0].width, "height": sizes[0].height}


def _check_output(output: Path) -> None:
    """Refuse before the work is done, not after it."""
    if output.suffix.lower() != ".png" or is_directory(output):
        raise UsageError(mismatch("-o", "a file name that ends in .png", repr(str(output)), "choose another name"))
    require_file(output)


def _save(png: PngOptions, path: Path, made: PipelineOutput) -> None:
    from quad.runtime.provenance.png import encode_png

    write_bytes(path, encode_png(made.images[0], made.facts[0], png))


def _write_png(path: Path, picture: Image) -> None:
    from quad.runtime.provenance.png import plain_png

    write_bytes(path, plain_png(picture))


def _json(outputs: Sequence[Path], generated: PipelineOutput) -> dict[str, Any]:
    """The object of `--json`; `adapter` is a name, a list of names where several are mixed, or null for the base."""
    names = list(generated.adapters)
    return {
        "output": str(outputs[0]),
        "outputs": [str(path) for path in outputs],
        "task": generated.task,
        "adapter": names[0] if len(names) == 1 else names or None,
        "adapters": generated.adapters,
        "seed": generated.seed,
        "seeds": generated.seeds,
        "sampler": generated.sampler,
        "guidance": generated.guidance,
        "timings_ms": {name: round(value, 3) for name, value in generated.timings_ms.items()},
        "peak_ram_bytes": peak_ram_bytes(),
        "notes": generated.notes,
    }


def _lines(outputs: Sequence[Path], generated: PipelineOutput) -> list[str]:
    used = " + ".join(name if weight == 1 else f"{name}:{weight:g}" for name, weight in generated.adapters.items()) or "the base"
    shown = str(outputs[0]) if len(outputs) == 1 else f"{outputs[0]} to {outputs[-1].name}"
    how = f"{generated.sampler}, guidance {generated.guidance:g}, " if generated.guidance is not None else ""
    seeds = f"seeds {generated.seeds[0]} to {generated.seeds[-1]}" if len(generated.seeds) > 1 else f"seed {generated.seed}"
    return [f"{shown}  {generated.task} by {used}, {how}{seeds}, {generated.timings_ms['total']:.0f} ms"]
