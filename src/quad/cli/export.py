"""`quad export`: a bundle in formats that the runtimes of others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quad.cli.extras import check_export
from quad.cli.shared_options import BundleDir
from quad.cli.show import Json, result, stage_bar
from quad.core.errors import UsageError, mismatch

FORMATS = ("onnx-adapter", "qairt")

Format = Annotated[
    str, typer.Option("--format", help="onnx-adapter: for ONNX Runtime's LoraAdapter; qairt: for Qualcomm's LoRA tools.",
                      metavar="|".join(FORMATS), show_default=False),
]  # fmt: skip
OutputDir = Annotated[Path, typer.Option("-o", "--output", help="The directory to write.", metavar="DIR", show_default=False)]
Encodings = Annotated[
    Path | None,
    typer.Option(help="With qairt: what the build wrote beside the bundle; BUNDLE.qairt by default.", metavar="DIR", show_default=False),
]


def export(bundle: BundleDir, format: Format, output: OutputDir, encodings: Encodings = None, as_json: Json = False) -> None:
    """Write a bundle's graphs and adapters for another runtime than quad's."""
    if format not in FORMATS:
        raise UsageError(mismatch("--format", " | ".join(FORMATS), repr(format), "choose one of these"))
    if encodings is not None and format != "qairt":
        raise UsageError(mismatch("--encodings", "--format qairt", format, "leave it out"))
    with stage_bar() as progress:
        check_export("quad export")
        from quad.export.ort_adapters import export_ort_adapters
        from quad.export.qairt import export_qairt

        qairt = format == "qairt"
        written = export_qairt(bundle, output, encodings, progress) if qairt else export_ort_adapters(bundle, output, progress)
    result({"output": str(output), **written}, as_json, _lines(output, written))


def _lines(output: Path, written: dict[str, Any]) -> list[str]:
    graphs = written.get("graphs") or written["components"]
    lines = [f"graphs {', '.join(graphs)}", f"adapters {', '.join(written['adapters']) or 'none'}"]
    lines += [f"session option {key}={value}" for key, value in written.get("session_config", {}).items()]
    return [*lines, str(output)]
