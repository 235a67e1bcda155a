"""`quad build`: a model and its LoRAs become one bundle."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from quad.cli.options import named_paths, read_recipe
from quad.cli.show import Json, result, stage_bar
from quad.cli.show import size as shown_size
from quad.core.errors import UnsupportedError, mismatch

if TYPE_CHECKING:
    from quad.build.request import BuildRequest, BuildResult

REFERENCE = "toyland"


class Choices(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Options that a recipe may hold too; None means that the build's own default holds."""

    adapter: list[str] | None = None
    target: str | None = None
    precision: str | None = None
    lora_bits: int | None = None
    max_rank: int | None = None
    min_energy: float | None = None
    allow_unused_keys: bool | None = None
    anchor: str | None = None
    distill_steps: int | None = None
    lambda_: float | None = msgspec.field(default=None, name="lambda")
    literal_shared_scale: bool | None = None
    soc: str | None = None
    size: int | None = None
    sampler: str | None = None
    calibration_size: int | None = None

    def over(self, other: Choices) -> Choices:
        """These, and the other's where these are silent."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return Choices(**{name: theirs[name] if value is None else value for name, value in mine.items()})


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A diffusers directory, a hub id (owner/name or owner/name@revision), or toyland: the shipped reference model.",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="A LoRA file or directory under a name; repeat it. toyland brings five.", metavar="NAME=PATH", show_default=False
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="The bundle directory to write.", metavar="BUNDLE", show_default=False)]
Target = Annotated[str | None, typer.Option(help="The chip and toolchain to build for.", show_default="cpu")]
Precision = Annotated[
    str | None,
    typer.Option(help="w8a16, w8a8, mixed:P (P percent of activation sites at 8 bits), or float to compare with.", show_default="w8a16"),
]
LoraBits = Annotated[int | None, typer.Option("--lora-bits", help="Bits of a LoRA weight: 16 or 8.", show_default="16")]
MaxRank = Annotated[
    int | None,
    typer.Option("--max-rank", help="Rank of every slot; larger adapters are reduced to it.", metavar="R", min=1, show_default=False),
]
MinEnergy = Annotated[
    float | None,
    typer.Option("--min-energy", help="Refuse an adapter that keeps less of a module where its rank or kind does not fit.", metavar="E",
                 show_default="0.9"),
]  # fmt: skip
UnusedKeys = Annotated[bool, typer.Option("--allow-unused-keys", help="Pass over LoRA keys that match nothing in the model.")]
Anchor = Annotated[
    str | None,
    typer.Option(
        help="Whose activation ranges all adapters get: a name, unified, or auto by sensitivity.",
        metavar="NAME|unified|auto",
        show_default="auto",
    ),
]
DistillSteps = Annotated[
    int | None,
    typer.Option("--distill-steps", help="Steps of training every adapter against the float model; 0 rescales alone.", metavar="N",
                 show_default="20, and 0 where activations have 8 bits"),
]  # fmt: skip
Lambda = Annotated[
    float | None,
    typer.Option("--lambda", help="Weight of the denoising loss in that training; only where true pictures are known.", metavar="L",
                 show_default="0"),
]  # fmt: skip
LiteralScale = Annotated[
    bool, typer.Option("--literal-shared-scale", help="One scale for a layer's weight and all its LoRA weights, to compare with.")
]
DumpPasses = Annotated[
    Path | None,
    typer.Option("--dump-passes", help="Also write the graphs after each pass, with a census of their operators.", metavar="DIR",
                 show_default=False),
]  # fmt: skip
Soc = Annotated[
    str | None,
    typer.Option(help="The Qualcomm chip that --target qnn-htp compiles for.", metavar="SM8750|SM8650|SM8550|...", show_default="SM8750"),
]
Encodings = Annotated[
    Path | None,
    typer.Option(help="Where qnn-htp also writes float graphs and AIMET encodings for Qualcomm's own converter.", metavar="DIR",
                 show_default="BUNDLE.qairt"),
]  # fmt: skip
Size = Annotated[
    int | None,
    typer.Option(help="Pixels along one side of the pictures, a multiple of 64.", metavar="N", show_default="the model's own"),
]
Sampler = Annotated[
    str | None,
    typer.Option(help="How noise becomes a picture; an unknown name lists all.", metavar="KIND[:STEPS]", show_default="the model's own"),
]
CalibrationSize = Annotated[
    int | None,
    typer.Option(help="Pixels of the pictures that ranges are measured on; half of --size takes a quarter of the time.", metavar="N",
                 show_default="as --size"),
]  # fmt: skip
Recipe = Annotated[
    Path | None,
    typer.Option(help="These options in a TOML file; the command line goes first.", metavar="FILE.toml", show_default=False),
]


def build(
    model: Model,
    output: Output,
    adapter: Adapters = None,
    target: Target = None,
    precision: Precision = None,
    lora_bits: LoraBits = None,
    max_rank: MaxRank = None,
    min_energy: MinEnergy = None,
    allow_unused_keys: UnusedKeys = False,
    anchor: Anchor = None,
    distill_steps: DistillSteps = None,
    lambda_: Lambda = None,
    literal_shared_scale: LiteralScale = False,
    soc: Soc = None,
    size: Size = None,
    sampler: Sampler = None,
    calibration_size: CalibrationSize = None,
    encodings: Encodings = None,
    dump_passes: DumpPasses = None,
    recipe: Recipe = None,
    as_json: Json = False,
) -> None:
    """Build one bundle from a model and its LoRAs."""
    chosen = Choices(
        adapter or None,
        target,
        precision,
        lora_bits,
        max_rank,
        min_energy,
        allow_unused_keys or None,
        anchor,
        distill_steps,
        lambda_,
        literal_shared_scale or None,
        soc,
        size,
        sampler,
        calibration_size,
    )
    if recipe is not None:
        chosen = chosen.over(read_recipe(recipe, Choices))
    adapters = named_paths("--adapter", chosen.adapter or [])
    with stage_bar() as progress, redirect_stdout(sys.stderr):  # exporters print; stdout is for the result alone
        check_extra("quad build")
        from quad.build.build import build as build_bundle

        built = build_bundle(replace(_request(model, adapters, output, chosen), dump_passes=dump_passes, encodings=encodings), progress)
        from quad.build.processes import is_main
    if not is_main():
        return
    for line in _sensitivity(built.profile):
        print(line, file=sys.stderr)
    result(built.to_json(), as_json, _lines(built))


def check_extra(verb: str) -> None:
    """Say which extra is missing, instead of a name of a module."""
    try:
        import diffusers  # noqa: F401
        import onnx_ir  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        found = f"no module {error.name}"
        raise UnsupportedError(mismatch(verb, "the build extra", found, "install it: pip install 'quad[build]'")) from error


def _request(model: str, adapters: dict[str, Path], output: Path, chosen: Choices) -> BuildRequest:
    """The build that is asked for; `toyland` brings its directory and, where no adapter is named, its five."""
    from quad.build.request import BuildRequest
    from quad.model.base.hub import resolve_model
    from quad.zoo.calibration import calibration_samples
    from quad.zoo.reference import reference_adapters, reference_dir

    directory = reference_dir() if model == REFERENCE else resolve_model(model)
    if model == REFERENCE:
        adapters = adapters or reference_adapters()
    given = {name: value for name, value in msgspec.structs.asdict(chosen).items() if name != "adapter" and value is not None}
    return BuildRequest(directory, adapters, output, calibration_samples(directory, adapters), **given)


def _sensitivity(profile: Mapping[str, Any]) -> list[str]:
    """The adapters' ranking by sensitivity and what was made of it; nothing where nothing was quantized."""
    lines = []
    for place, name in enumerate(profile.get("ranking", ()), 1):
        low, high = profile["qss_interval"][name]
        qss, sqnr_db = profile["qss"][name], profile["sqnr_db"][name]
        lines.append(f"sensitivity {place}. {name}: {qss:.2e} bits ({low:.2e} to {high:.2e}), {sqnr_db:.1f} dB")
    return [*lines, f"profile {profile['mode']}: {profile['reason']}"] if "reason" in profile else lines


def _lines(built: BuildResult) -> list[str]:
    lines = [f"bundle {built.bundle}: {', '.join(built.manifest.tasks)}"]
    lines.append(f"adapters {', '.join(built.manifest.adapters) or 'none'}")
    lines += [f"adapter {name}: {note}" for name, said in built.lora.items() for note in said["notes"]]
    total = sum(entry.size_bytes for entry in built.manifest.files.values())
    placed = built.placement
    lines += [f"{placed['on_target']} of {placed['nodes']} U-Net nodes on {built.manifest.target}, partitions {placed['partitions']}"]
    if built.manifest.requires:
        worst = min(db for sources in built.emulation.values() for db in sources.values())
        lines += [f"compiled for {built.manifest.requires['soc']}, emulated against the CPU: {worst:.1f} dB at worst"]
    return [*lines, f"{shown_size(total)}, {built.seconds:.0f} s, peak memory {shown_size(built.peak_ram_bytes)}"]
