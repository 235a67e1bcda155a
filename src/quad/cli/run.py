"""`quad run`: one picture from a bundle, by the device runtime alone."""

from __future__ import annotations

import io
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from quad.cli.options import weighted_names
from quad.cli.shared_options import BundleDir, EngineName, MemoryPlan, StoreDir
from quad.cli.show import Json, note, progress_bar, result
from quad.core.errors import UsageError, mismatch
from quad.core.manifest import BUNDLE_FILE
from quad.core.memory import peak_ram_bytes
from quad.core.storage.files import require_file, write_bytes
from quad.core.storage.install_pointers import store_beside
from quad.core.storage.reading import is_directory
from quad.core.storage.replaced import unless_replaced

if TYPE_CHECKING:
    from PIL.Image import Image

    from quad.runtime.conditioning.prompt_syntax import PromptSyntax
    from quad.runtime.stages import PipelineOutput

MAX_SEED = 2**32

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
Seed = Annotated[int | None, typer.Option(help="Seed of the noise; drawn and told by default.", metavar="N", min=0, show_default=False)]


def run(
    bundle: BundleDir,
    task: Task,
    output: Output,
    adapter: Adapters = None,
    prompt: Prompt = "",
    image: Picture = None,
    mask: Mask = None,
    steps: Steps = None,
    seed: Seed = None,
    strength: Strength = None,
    guidance: Guidance = None,
    image_guidance: ImageGuidance = None,
    negative_prompt: Negative = "",
    prompt_syntax: Syntax = "a1111",
    engine: EngineName = "auto",
    memory: MemoryPlan = "minimal",
    store: StoreDir = None,
    as_json: Json = False,
) -> None:
    """Make one picture from a bundle, without torch."""
    _check_output(output)
    weights = weighted_names("--adapter", adapter or [])
    drawn = secrets.randbelow(MAX_SEED) if seed is None else seed

    def generate() -> PipelineOutput:
        from quad.runtime.pipeline import QuadPipeline

        pipe = QuadPipeline.from_pretrained(bundle, engine=engine, memory=memory, store=store or store_beside(bundle))
        for line in pipe.notes:
            note(line)
        if weights:
            pipe.set_adapters(list(weights), list(weights.values()))
        total = steps or (pipe.tasks[task].sampler.steps if task in pipe.tasks else None)
        with progress_bar(task, total) as advance:
            return pipe(
                prompt,
                task=task,
                image=image,
                mask_image=mask,
                num_inference_steps=steps,
                strength=strength,
                guidance_scale=guidance,
                image_guidance_scale=image_guidance,
                negative_prompt=negative_prompt,
                prompt_syntax=cast("PromptSyntax", prompt_syntax),
                seed=drawn,
                callback_on_step_end=lambda *_: advance(),
            )

    generated = unless_replaced(bundle / BUNDLE_FILE, generate)
    _write_png(output, generated.images[0])
    for line in generated.notes:
        note(line)
    result(_json(output, generated), as_json, _lines(output, generated))


def _check_output(output: Path) -> None:
    """Refuse before the work is done, not after it."""
    if output.suffix.lower() != ".png" or is_directory(output):
        raise UsageError(mismatch("-o", "a file name that ends in .png", repr(str(output)), "choose another name"))
    require_file(output)


def _write_png(path: Path, picture: Image) -> None:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    write_bytes(path, data.getvalue())


def _json(output: Path, generated: PipelineOutput) -> dict[str, Any]:
    """The object of `--json`; `adapter` is a name, a list of names where several are mixed, or null for the base."""
    names = list(generated.adapters)
    return {
        "output": str(output),
        "task": generated.task,
        "adapter": names[0] if len(names) == 1 else names or None,
        "adapters": generated.adapters,
        "seed": generated.seed,
        "timings_ms": {name: round(value, 3) for name, value in generated.timings_ms.items()},
        "peak_ram_bytes": peak_ram_bytes(),
        "notes": generated.notes,
    }


def _lines(output: Path, generated: PipelineOutput) -> list[str]:
    used = " + ".join(name if weight == 1 else f"{name}:{weight:g}" for name, weight in generated.adapters.items()) or "the base"
    return [f"{output}  {generated.task} by {used}, seed {generated.seed}, {generated.timings_ms['total']:.0f} ms"]
