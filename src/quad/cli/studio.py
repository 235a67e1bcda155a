"""`quad studio`: a page in the browser over one resident model."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quad.cli.extras import check_serve
from quad.cli.options import named_paths
from quad.cli.serve import MIB, Budget, Memory, Pixels, Queue, Steps, Time, TokenFile, Uploads, serve_options
from quad.cli.shared_options import (
    BundleDir,
    Embeddings,
    EngineName,
    FloatType,
    Mark,
    Sign,
    StoreDir,
    Threads,
    Vae,
)
from quad.cli.show import Json, result, size, stage_bar
from quad.core.errors import UnsupportedError, UsageError, mismatch

if TYPE_CHECKING:
    from quad.serve.endpoint import Endpoint
    from quad.serve.service import Service

FULL_PRECISION = "quad.evaluate.full_precision"

Port = Annotated[int, typer.Option(help="The port of 127.0.0.1, 0 for any that is free.", metavar="N", min=0, max=65535)]

Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        help="The full-precision model the bundle was built from, to lay its pictures beside.",
        metavar="MODEL",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="With --against: the LoRA file of a bundled adapter, where the model directory has none.", metavar="NAME=PATH",
        show_default=False,
    ),
]  # fmt: skip
ReportDir = Annotated[
    Path | None,
    typer.Option("--report", help="Where report.html and ablate.json lie, for the bundle's card.", metavar="DIR", show_default=False),
]
Export = Annotated[
    Path | None,
    typer.Option(
        "--export", help="Serve nothing: write a folder for any static host; its page makes pictures in the browser alone.", metavar="DIR",
        show_default=False,
    ),
]  # fmt: skip
Parameters = Annotated[bool, typer.Option("--parameters/--no-parameters", help="Write into each picture's file how it was made.")]


def studio(
    bundle: BundleDir,
    port: Port = 0,
    token_file: TokenFile = None,
    store: StoreDir = None,
    engine: EngineName = "auto",
    float_type: FloatType = "auto",
    threads: Threads = None,
    memory: Memory = "keep-all",
    adapter_budget: Budget = None,
    embedding: Embeddings = None,
    max_queue: Queue = 32,
    max_pixels: Pixels = 16 * MIB,
    max_steps: Steps = 150,
    time_limit: Time = 600.0,
    allow_uploads: Uploads = False,
    against: Against = None,
    adapter: Adapters = None,
    vae: Vae = None,
    report: ReportDir = None,
    export: Export = None,
    parameters: Parameters = True,
    mark: Mark = False,
    sign: Sign = None,
    as_json: Json = False,
) -> None:
    """Make pictures on a page in the browser, until SIGTERM or Ctrl-C; nothing leaves this machine."""
    words = locals()
    check_serve("quad studio")
    if export is not None:
        _export(bundle, export, as_json)
        return
    from quad.serve.endpoint import port_endpoint
    from quad.serve.launch import StudioOptions, launch
    from quad.serve.studio.files import page_files

    if against is None and (adapter or vae is not None):
        raise UsageError(mismatch("--adapter, --vae", "--against with them", "none", "name the full-precision model, or leave them out"))
    command = [] if against is None else _reference_command(bundle, against, adapter or [], vae)
    page = StudioOptions(page=page_files(), report=report, reference_command=command)
    listening = port_endpoint(port, token_file)
    launch(serve_options(words, page), listening, lambda endpoint, service: _announce(endpoint, service, as_json))


def _export(bundle: Path, folder: Path, as_json: bool) -> None:
    from quad.serve.studio.export import export_page

    with stage_bar() as progress:
        files = export_page(bundle, folder, progress)
    n_bytes = sum(files.values())
    lines = [f"{len(files)} files, {size(n_bytes)}", f"try it: python -m http.server --directory {folder}", str(folder)]
    result({"export": str(folder), "files": len(files), "bytes": n_bytes}, as_json, lines)


def _reference_command(bundle: Path, model: str, adapters: list[str], vae: Path | None) -> list[str]:
    """The process of the full-precision model, which alone loads torch; what is wrong with the model is told by its first picture.

    Raises:
        UnsupportedError: `quad[build]` is not installed.
    """
    if find_spec("torch") is None or find_spec("diffusers") is None:
        raise UnsupportedError(mismatch("quad studio --against", "the build extra", "none", "install it: pip install 'quad[build]'"))
    files = [word for name, file in named_paths("--adapter", adapters).items() for word in ("--adapter", f"{name}={file.absolute()}")]
    own = [] if vae is None else ["--vae", str(vae.absolute())]
    return [sys.executable, "-m", FULL_PRECISION, str(bundle.absolute()), model, *files, *own]


def _announce(endpoint: Endpoint, service: Service, as_json: bool) -> None:
    """The address with the token behind `#`, which a browser sends to nobody."""
    address = f"http://127.0.0.1:{endpoint.port}"
    page = f"{address}/#token={endpoint.token}"
    facts = {"page": page, "address": address, "token_file": str(endpoint.token_file)}
    result({**facts, "bundle": service.pipe.bundle.manifest.name, "engine": service.pipe.engine}, as_json, [f"studio at {page}"])
    sys.stdout.flush()
