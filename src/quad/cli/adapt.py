"""`quad adapt`: a new LoRA for a bundle that is frozen."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quad.cli.extras import check_build
from quad.cli.options import stated_adapters
from quad.cli.shared_options import BundleDir, DeviceName, EngineName, UnusedKeys, Vae, local_adapters, model_directory
from quad.cli.show import Json, result, size, stage_bar
from quad.core.device import CPU
from quad.core.errors import UsageError, mismatch
from quad.core.sampling import AdapterDefaults

if TYPE_CHECKING:
    from quad.admit.request import AdaptRequest, AdaptResult

Adapter = Annotated[
    str,
    typer.Argument(
        metavar="NAME=PATH[,sampler=KIND:STEPS][,guidance=G]",
        help="A float LoRA file or directory, under the name it will have; with --packed-for a pack.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="The pack to write.", metavar="FILE.qpack", show_default=False)]
PackedFor = Annotated[
    Path | None,
    typer.Option(
        "--packed-for", metavar="BUNDLE", help="Another bundle of the same model that PATH is a pack for; it is rounded anew, not trained.",
        show_default=False,
    ),
]  # fmt: skip
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="MODEL", help="The model the bundle was built from; the adapter is aligned with it and measured against it.",
        show_default=False,
    ),
]  # fmt: skip
Task = Annotated[str | None, typer.Option(help="What the adapter is for: a task of the bundle, or a new one with --like.", metavar="TASK")]
Like = Annotated[str | None, typer.Option(help="The task of the bundle that a new task takes its sampler and inputs from.", metavar="TASK")]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Words to align and measure it with, where its own matter; repeat it. Needs --base.", metavar="S"),
]
DistillSteps = Annotated[
    int | None,
    typer.Option("--distill-steps", help="Steps of training against the float model. Needs --base.", metavar="N", show_default="0"),
]  # fmt: skip
MinEnergy = Annotated[
    float | None,
    typer.Option("--min-energy", help="Refuse an adapter that keeps less of a module where it is converted or cut to its slot's rank.",
                 metavar="E", show_default="0.9"),
]  # fmt: skip


def adapt(
    bundle: BundleDir,
    adapter: Adapter,
    output: Output,
    packed_for: PackedFor = None,
    base: BaseModel = None,
    vae: Vae = None,
    device: DeviceName = CPU,
    task: Task = None,
    like: Like = None,
    prompt: Prompts = None,
    distill_steps: DistillSteps = None,
    min_energy: MinEnergy = None,
    allow_unused_keys: UnusedKeys = None,
    engine: EngineName = "auto",
    as_json: Json = False,
) -> None:
    """Admit a new LoRA to a frozen bundle: check it against every slot, pack it or refuse it."""
    stated = stated_adapters("NAME=PATH", [adapter], ranked=False)
    with stage_bar() as progress, redirect_stdout(sys.stderr):
        if base is not None:
            check_build("quad adapt --base")
        from quad.admit.request import AdaptRequest
        from quad.align.adapt import adapt as admit

        name, path = next(iter(local_adapters(stated.paths).items()))
        request = AdaptRequest(
            bundle, name, path, output=output, packed_for=packed_for, task=task, like=like, prompts=tuple(prompt or ()),
            distill_steps=distill_steps,
            allow_unused_keys=bool(allow_unused_keys), engine=engine, vae=vae, device=device,
            defaults=stated.defaults.get(name, AdapterDefaults()),
        )  # fmt: skip
        request = request if min_energy is None else replace(request, min_energy=min_energy)
        admitted = admit(request if base is None else _with_base(request, base), progress)
    result(admitted.to_json(), as_json, _lines(admitted))


def _with_base(request: AdaptRequest, base: str) -> AdaptRequest:
    """The model's directory, and samples of its tasks."""
    from quad.zoo.calibration import calibration_samples

    if not base:
        raise UsageError(mismatch("--base", "a model", "nothing", "name it, or leave the option out"))
    directory = model_directory(base)
    return replace(request, base=directory, samples=calibration_samples(directory, [request.name]))


def _lines(admitted: AdaptResult) -> list[str]:
    manifest, trial = admitted.manifest, admitted.trial
    tasks = ", ".join(manifest.tasks) or "any task, where it is named (--adapter)"
    lines = [f"adapter {manifest.name}: rank {manifest.rank}, {manifest.bits} bits, {size(manifest.size_bytes)}, for {tasks}"]
    lines += [f"note {note}" for note in admitted.notes]
    if admitted.slots:
        weakest = min(admitted.slots, key=lambda slot: slot.product_db)
        right = f"B A right to {weakest.product_db:.1f} dB at worst ({weakest.path})"
        lines.append(f"slots {len(admitted.slots)}: {'normalised' if 'weights' in trial else 'rescaled'}, {right}, nothing clipped")
    effects = ", ".join(f"{name} {effect:.3f}" for name, effect in trial["others"].items())
    beside = f", on one of them {trial['golden_effect']:.3f}, the bundle's own there: {effects}" if effects else ""
    lines.append(f"effect on the stored calls {trial['effect']:.3f} of the output{beside}")
    for name, use in list(trial["lossy"].items())[:3]:
        lines.append(f"activation {name}: its range cuts off {use['lost']:.2%} of its energy, values reach {use['reach']:.2f} of it")
    lines += [f"quality {line}" for line in _quality(admitted)]
    lines += [f"checked {line}" for line in admitted.checked] + [f"NOT checked {line}" for line in admitted.unchecked]
    return [*lines, f"{admitted.pack}, {admitted.seconds:.0f} s"]


def _quality(admitted: AdaptResult) -> list[str]:
    import msgspec

    quality = admitted.manifest.quality
    if quality is msgspec.UNSET or quality.output_db is msgspec.UNSET:
        return []
    if quality.effect_db is msgspec.UNSET:
        return [f"output {quality.output_db:.1f} dB"]
    return [f"output {quality.output_db:.1f} dB, effect {quality.effect_db:.1f} dB, gain {quality.effect_gain:.3f}"]
