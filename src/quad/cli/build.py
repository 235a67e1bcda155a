"""`quad build`: a model and its LoRAs become one bundle."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from quad.cli.extras import check_build
from quad.cli.options import one_parameter_per_field, read_recipe, stated_adapters
from quad.cli.shared_options import REFERENCES, AdaptersToBuild, Model, UnusedKeys, local_adapters, model_directory, with_shipped
from quad.cli.show import Json, result, stage_bar
from quad.cli.show import size as shown_size
from quad.core.processes import speaks

if TYPE_CHECKING:
    from quad.build.request import BuildRequest
    from quad.build.result import BuildResult


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """The options of `quad build` that a recipe may hold too; None means that the build's own default holds."""

    adapter: AdaptersToBuild = None
    target: Annotated[str | None, typer.Option(help="The chip and toolchain to build for.", show_default="cpu")] = None
    precision: Annotated[
        str | None,
        typer.Option(help="w8a16, w8a8, mixed:P (P percent of activation sites at 8 bits), w4a16 and w4:mixed:P (the U-Net's weights at 4 "
                     "bits), dynamic-w8 (target litert: weights of 8 bits, activations rounded as the engine runs), or float to compare "
                     "with.",
                     show_default="mixed:80 for cpu and openvino, w8a16 for chips"),
    ] = None  # fmt: skip
    lora_bits: Annotated[int | None, typer.Option(help="Bits of a LoRA weight: 16 or 8.", show_default="16")] = None
    max_rank: Annotated[
        int | None,
        typer.Option(help="Rank of every slot; larger adapters are reduced to it.", metavar="R", min=1, show_default=False),
    ] = None
    room: Annotated[
        int | None,
        typer.Option(help="Adapters at once that every slot has rank for, those of largest rank there.", metavar="N", min=1,
                     show_default="2"),
    ] = None  # fmt: skip
    slots: Annotated[
        str | None,
        typer.Option(help="One range for any adapter, with a scale for each rank channel, or ranges of the adapters at hand.",
                     metavar="normalised|searched", show_default="normalised"),
    ] = None  # fmt: skip
    min_energy: Annotated[
        float | None,
        typer.Option(help="Refuse an adapter that keeps less of a module where its rank or kind does not fit.", metavar="E",
                     show_default="0.9"),
    ] = None  # fmt: skip
    allow_unused_keys: UnusedKeys = None
    anchor: Annotated[
        str | None,
        typer.Option(help="Whose activation ranges all adapters get: a name, unified, or auto by sensitivity.",
                     metavar="NAME|unified|auto", show_default="auto"),
    ] = None  # fmt: skip
    max_loss: Annotated[
        float | None,
        typer.Option(help="Group adapters into several profiles where one costs an adapter more of the U-Net's output than this.",
                     metavar="DB", show_default="one profile; 3 with --max-profiles"),
    ] = None  # fmt: skip
    max_profiles: Annotated[
        int | None,
        typer.Option(help="How many profiles there may be; each further one is a graph of the U-Net over the same weights.", metavar="K",
                     min=1, show_default="1; as many as it takes with --max-loss"),
    ] = None  # fmt: skip
    distill_steps: Annotated[
        int | None,
        typer.Option(help="Steps of training every adapter against the float model.", metavar="N", show_default="0"),
    ] = None  # fmt: skip
    lambda_: Annotated[
        float | None,
        typer.Option("--lambda", help="Weight of the denoising loss in that training; only where true pictures are known.", metavar="L",
                     show_default="0"),
    ] = msgspec.field(default=None, name="lambda")  # fmt: skip
    rounding: Annotated[
        str | None,
        typer.Option(help="How weights become int8: with errors that cancel on calibration inputs, or each to the nearest integer.",
                     metavar="compensated|nearest", show_default="compensated"),
    ] = None  # fmt: skip
    correction_rank: Annotated[
        int | None,
        typer.Option(help="Rank of what mends the base's error at 4 bits, beside every adapter; 0 for none.", metavar="C", min=0,
                     show_default="8"),
    ] = None  # fmt: skip
    weight_budget: Annotated[
        str | int | None,
        typer.Option(help="Bytes for all weights at 4 bits, as 600MB: layers whose error is felt most keep 8 while they last.",
                     metavar="SIZE", show_default="a twentieth of the weights at 8"),
    ] = None  # fmt: skip
    literal_shared_scale: Annotated[
        bool | None,
        typer.Option("--literal-shared-scale", help="One scale for a layer's weight and all its LoRA weights, to compare with."),
    ] = None
    soc: Annotated[
        list[str] | str | None,
        typer.Option(help="The Qualcomm chip that --target qnn-htp compiles for; repeat it with litert, for MediaTek's and LSI's too.",
                     metavar="SM8750|SM8650|MT6993|E9965|...", show_default="SM8750 for qnn-htp, none for litert"),
    ] = None  # fmt: skip
    size: Annotated[
        str | int | None,
        typer.Option(help="Width and height of the pictures in pixels, multiples of 64.", metavar="N|WxH", show_default="the model's own"),
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option(help="How noise becomes a picture; an unknown name lists all.", metavar="KIND[:STEPS]",
                     show_default="the model's own"),
    ] = None  # fmt: skip
    calibration_size: Annotated[
        str | int | None,
        typer.Option(help="Size of the pictures that ranges are measured on; half of --size takes a quarter of the time.",
                     metavar="N|WxH", show_default="as --size"),
    ] = None  # fmt: skip
    clip_skip: Annotated[
        int | None,
        typer.Option(help="Layer of the text encoder, from the last, that gives its output, as A1111 counts: 2 leaves the last one out.",
                     metavar="N", min=1, show_default="1"),
    ] = None  # fmt: skip
    prompt_chunks: Annotated[
        int | None,
        typer.Option(help="Chunks of 75 tokens that a prompt may have; each costs about 1 % of a Stable Diffusion step.", metavar="N",
                     min=1, show_default="1"),
    ] = None  # fmt: skip
    reuse: Annotated[
        bool | None,
        typer.Option("--reuse", help="Also write the U-Net's shallow part, so that steps can reuse the deep part of an earlier one."),
    ] = None
    tiny_decoder: Annotated[
        bool | None,
        typer.Option("--tiny-decoder", help="Also distil a small decoder of the model's own, which quad run takes with --tiny-decoder."),
    ] = None
    vae: Annotated[
        Path | None,
        typer.Option(help="An autoencoder in place of the model's own: a .safetensors file or a directory.", metavar="FILE|DIR",
                     show_default="the model's own"),
    ] = None  # fmt: skip
    prediction: Annotated[
        str | None,
        typer.Option(help="What the U-Net of a one-file checkpoint predicts.", metavar="epsilon|v", show_default="what the file tells"),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(help="Threads that one sum is dealt to; the bundle depends on it. More are faster for a large model alone.",
                     metavar="N", min=1, show_default="1, whatever the machine has"),
    ] = None  # fmt: skip
    device: Annotated[
        str | None,
        typer.Option(help="What torch computes on; the bundle depends on it. auto takes an accelerator where there is one.",
                     metavar="auto|cpu|cuda|mps", show_default="cpu"),
    ] = None  # fmt: skip
    statistics: Annotated[
        str | None,
        typer.Option(help="What the float networks compute in while ranges are measured; the bundle depends on it.",
                     metavar="auto|f32|bf16", show_default="bf16 for a large model where the processor has it"),
    ] = None  # fmt: skip

    @property
    def stated(self) -> dict[str, Any]:
        """The options that say something, by field name; an empty list of adapters says nothing."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None and value != []}

    def over(self, recipe: BuildOptions) -> BuildOptions:
        """These, and the recipe's where these say nothing."""
        return BuildOptions(**{**recipe.stated, **self.stated})


Output = Annotated[Path, typer.Option("-o", "--output", help="The bundle directory to write.", metavar="BUNDLE", show_default=False)]
Encodings = Annotated[
    Path | None,
    typer.Option(help="Where qnn-htp also writes float graphs and AIMET encodings for Qualcomm's own converter.", metavar="DIR",
                 show_default="BUNDLE.qairt"),
]  # fmt: skip
DumpPasses = Annotated[
    Path | None,
    typer.Option(help="Also write the graphs after each pass, with a census of their operators.", metavar="DIR", show_default=False),
]
Recipe = Annotated[
    Path | None,
    typer.Option(help="These options in a TOML file; the command line goes first.", metavar="FILE.toml", show_default=False),
]


@one_parameter_per_field("options")
def build(
    model: Model,
    output: Output,
    options: BuildOptions,
    encodings: Encodings = None,
    dump_passes: DumpPasses = None,
    recipe: Recipe = None,
    as_json: Json = False,
) -> None:
    """Build one bundle from a model and its LoRAs."""
    if recipe is not None:
        options = options.over(read_recipe(recipe, BuildOptions))
    stated = stated_adapters("--adapter", with_shipped(options.adapter or []))
    with stage_bar() as progress, redirect_stdout(sys.stderr):  # exporters print; stdout is for the result alone
        check_build("quad build")
        from quad.build.build import build as build_bundle

        request = replace(_request(model, stated.paths, output, options), dump_passes=dump_passes, encodings=encodings)
        built = build_bundle(replace(request, adapter_defaults=stated.defaults, adapter_ranks=stated.ranks), progress)
    if not speaks():
        return
    for line in built.profile.lines():
        print(line, file=sys.stderr)
    result(built.to_json(), as_json, _lines(built))


def _request(model: str, adapters: dict[str, Path], output: Path, options: BuildOptions) -> BuildRequest:
    """The build that is asked for; a shipped model brings its directory and, where no adapter is named, its adapters."""
    from quad.build.request import BuildRequest
    from quad.lora.file import require_lora
    from quad.zoo.calibration import calibration_samples
    from quad.zoo.reference import reference_adapters

    adapters = local_adapters(adapters)
    if model not in REFERENCES and not Path(model).exists():
        for path in adapters.values():  # before a model is fetched
            require_lora(path)
    directory = model_directory(model)
    if model in REFERENCES:
        adapters = adapters or reference_adapters(model)
    stated = {name: value for name, value in options.stated.items() if name != "adapter"}
    samples = calibration_samples(directory, adapters)
    return BuildRequest(model=directory, adapters=adapters, output=output, samples=samples, **stated)


def _lines(built: BuildResult) -> list[str]:
    lines = [f"bundle {built.bundle}: {', '.join(built.manifest.tasks)}"]
    lines.append(f"adapters {', '.join(built.manifest.adapters) or 'none'}")
    lines += [f"note: {note}" for note in built.notes]
    lines += [f"adapter {name}: {note}" for name, facts in built.lora.items() for note in facts["notes"]]
    lines += built.room.lines(shown_size)
    total = sum(entry.size_bytes for entry in built.manifest.files.values())
    census = built.placement
    lines += [f"{census['on_target']} of {census['nodes']} U-Net nodes on {built.manifest.target}, partitions {census['partitions']}"]
    if agreements := [db for sources in built.emulation.values() for db in sources.values()]:
        chip = built.manifest.requires["soc"] if built.manifest.requires else None
        how = "run on LiteRT's CPU kernels against the placed graphs" if chip is None else f"compiled for {chip}, emulated against the CPU"
        lines += [f"{how}: {min(agreements):.1f} dB at worst"]
    lines += [f"{chip}: {state}" for chip, state in (built.manifest.chips or {}).items()]
    return [*lines, f"{shown_size(total)}, {built.seconds:.0f} s, peak memory {shown_size(built.peak_ram_bytes)}"]
