"""`quad eval`: how close a bundle's pictures are to those of its full-precision model."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quad.cli.extras import check_build
from quad.cli.options import named_paths
from quad.cli.shared_options import (
    BundleDir,
    DeviceName,
    EngineName,
    FloatType,
    GuidanceInterval,
    Reuse,
    Samples,
    TinyDecoder,
    Vae,
    check_report_dir,
    local_adapters,
    model_directory,
)  # fmt: skip
from quad.cli.show import Json, result, stage_bar
from quad.core.device import CPU
from quad.core.processes import speaks

if TYPE_CHECKING:
    from quad.evaluate.compare import EvaluationResult

FullPrecisionModel = Annotated[
    str,
    typer.Option(
        "--against",
        metavar="MODEL",
        help="The full-precision model the bundle was built from: a directory, a hub id, toyland or toyland-xl.",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="The LoRA file of a bundled adapter, where the model directory has none.", metavar="NAME=PATH", show_default=False
    ),
]
ReportDir = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write eval.json, report.html and pictures here.", metavar="DIR", show_default=False),
]


def eval(
    bundle: BundleDir,
    model: FullPrecisionModel,
    n: Samples = 64,
    output: ReportDir = None,
    adapter: Adapters = None,
    vae: Vae = None,
    engine: EngineName = "auto",
    float_type: FloatType = "auto",
    guidance_interval: GuidanceInterval = None,
    device: DeviceName = CPU,
    reuse: Reuse = 1,
    tiny_decoder: TinyDecoder = False,
    as_json: Json = False,
) -> None:
    """Compare a bundle with its full-precision model, picture by picture."""
    adapters = named_paths("--adapter", adapter or [])
    check_report_dir(output, "eval.json", "report.html", "pictures/task.png")
    with stage_bar() as progress, redirect_stdout(sys.stderr):
        check_build("quad eval")
        from quad.evaluate.compare import EvaluationRequest, evaluate_bundle, write_result
        from quad.runtime.conditioning.guidance import parse_interval

        shortcuts: dict[str, Any] = {} if guidance_interval is None else {"guidance_interval": parse_interval(guidance_interval)}
        shortcuts |= {**({"reuse": reuse} if reuse > 1 else {}), **({"tiny_decoder": True} if tiny_decoder else {})}
        files = local_adapters(adapters)
        request = EvaluationRequest(
            bundle=bundle,
            model=model_directory(model),
            vae=vae,
            adapters=files,
            n=n,
            engine=engine,
            device=device,
            float_type=float_type,
            shortcuts=shortcuts,
        )
        evaluated = evaluate_bundle(request, progress)
        if output is not None and speaks():
            write_result(evaluated, output)
    result(evaluated.evaluation, as_json, _lines(evaluated, output))


def _lines(evaluated: EvaluationResult, output: Path | None) -> list[str]:
    lines = []
    for task, entry in evaluated.evaluation.tasks.items():
        gain = "" if entry.effect_gain is None else f", adapter effect gain {entry.shown_gain}"
        lines.append(f"{task:<14} {entry.psnr:5.1f} dB, SSIM {entry.ssim:.3f}{gain}, n = {entry.n}")
    return lines if output is None else [*lines, str(output / "report.html")]
