"""`quad serve`: several apps on one device, one resident model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quad.cli.extras import check_serve
from quad.cli.options import words_of_files
from quad.cli.shared_options import Embeddings, EngineName, FloatType, Mark, Sign, StoreDir, Threads, png_options
from quad.cli.show import Json, result
from quad.core.errors import UsageError, mismatch

if TYPE_CHECKING:
    from quad.serve.endpoint import Endpoint
    from quad.serve.launch import ServeOptions, StudioOptions
    from quad.serve.service import Service

MIB = 2**20
_AS_NAMED = ("bundle", "engine", "float_type", "threads", "memory", "store", "allow_uploads")
_LIMITS = {
    "max_body": "max_body_bytes",
    "max_pixels": "max_pixels",
    "max_queue": "max_queue",
    "max_steps": "max_steps",
    "time_limit": "time_limit_s",
    "lease": "lease_s",
}

BundleDir = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", help="A bundle directory, as quad build writes it.", show_default=False)
]
Socket = Annotated[
    Path | None,
    typer.Option(help="The Unix socket to listen on; by default one in your own runtime directory.", metavar="PATH", show_default=False),
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Listen on this port of 127.0.0.1 instead, 0 for any; calls need a token.", metavar="N", min=0, max=65535, show_default=False
    ),
]
TokenFile = Annotated[Path | None, typer.Option(help="Where the token is written, with --port.", metavar="F", show_default=False)]
Budget = Annotated[
    int | None,
    typer.Option("--adapter-budget", help="Bytes of memory for adapters; no bound by default.", metavar="BYTES", min=0, show_default=False),
]
Memory = Annotated[Literal["keep-all", "balanced", "minimal"], typer.Option(help="Which graphs stay in memory between pictures.")]
Queue = Annotated[int, typer.Option("--max-queue", help="Requests that wait or run.", metavar="N", min=1)]
Body = Annotated[int, typer.Option("--max-body", help="Bytes of one call, packs apart.", metavar="BYTES", min=1024)]
Pixels = Annotated[int, typer.Option("--max-pixels", help="Width times height of a given picture.", metavar="N", min=1)]
Steps = Annotated[int, typer.Option("--max-steps", help="Sampler steps of one request.", metavar="N", min=1)]
Time = Annotated[float, typer.Option("--time-limit", help="Seconds that one request may run.", metavar="S", min=0.1)]
Lease = Annotated[float, typer.Option("--lease", help="Seconds that a request lives when nobody asks after it.", metavar="S", min=0.1)]
Uploads = Annotated[bool, typer.Option("--allow-uploads", help="Let clients send packs and LoRA files.")]
Parameters = Annotated[bool, typer.Option("--parameters", help="Write into each picture's file how it was made, its prompt too.")]
Document = Annotated[bool, typer.Option("--openapi", help="Print the API's OpenAPI document, and serve nothing.")]


def serve(
    bundle: BundleDir = None,
    socket: Socket = None,
    port: Port = None,
    token_file: TokenFile = None,
    store: StoreDir = None,
    engine: EngineName = "auto",
    float_type: FloatType = "auto",
    threads: Threads = None,
    memory: Memory = "keep-all",
    adapter_budget: Budget = None,
    embedding: Embeddings = None,
    max_queue: Queue = 32,
    max_body: Body = 32 * MIB,
    max_pixels: Pixels = 16 * MIB,
    max_steps: Steps = 150,
    time_limit: Time = 600.0,
    lease: Lease = 30.0,
    allow_uploads: Uploads = False,
    parameters: Parameters = False,
    mark: Mark = False,
    sign: Sign = None,
    openapi: Document = False,
    as_json: Json = False,
) -> None:
    """Serve a bundle to the apps of this device until SIGTERM or Ctrl-C."""
    words = locals()
    if openapi:
        _print_document()
        return
    if bundle is None:
        raise UsageError(mismatch("quad serve", "a bundle", "none", "name one: quad serve BUNDLE"))
    if port is not None and socket is not None:
        raise UsageError(mismatch("quad serve", "--socket or --port", "both", "leave one out"))
    if port is None and token_file is not None:
        raise UsageError(mismatch("--token-file", "--port with it", "none", "a socket needs no token, its file mode is the check"))
    check_serve("quad serve")
    from quad.serve.endpoint import port_endpoint, socket_endpoint
    from quad.serve.launch import launch

    listening = socket_endpoint(socket) if port is None else port_endpoint(port, token_file)
    launch(serve_options(words), listening, lambda endpoint, service: _announce(endpoint, service, as_json))


def serve_options(words: Mapping[str, Any], studio: StudioOptions | None = None) -> ServeOptions:
    """The options of `quad serve` and `quad studio` as a server takes them.

    Args:
        words: of the verb, by the names of its parameters; limits that it does not have are the server's own.
        studio: the page over it.

    Raises:
        UsageError: a textual inversion is no file under a word. UnsupportedError, InputError: as `png_options`.
    """
    from quad.serve.launch import ServeOptions
    from quad.serve.limits import Limits

    return ServeOptions(
        **{name: words[name] for name in _AS_NAMED},
        limits=Limits(**{field: words[name] for name, field in _LIMITS.items() if name in words}),
        adapter_budget_bytes=words["adapter_budget"],
        png=png_options(parameters=words["parameters"], mark=words["mark"], sign=words["sign"]),
        embeddings=words_of_files("--embedding", words["embedding"] or []),
        studio=studio,
    )


def _print_document() -> None:
    check_serve("quad serve")
    from quad.serve.app import OPERATIONS
    from quad.serve.operations.openapi import document

    print(json.dumps(document(OPERATIONS), indent=2))


def _announce(endpoint: Endpoint, service: Service, as_json: bool) -> None:
    """Where it is found: once this is read, calls are answered. The token itself is never shown."""
    if endpoint.token_file is None:
        facts, line = {"socket": str(endpoint.stem)}, f"serving on {endpoint.stem}"
    else:
        address = f"http://127.0.0.1:{endpoint.port}"
        facts = {"address": address, "token_file": str(endpoint.token_file)}
        line = f"serving on {address}, its token is in {endpoint.token_file}"
    whole = {**facts, "bundle": service.pipe.bundle.manifest.name, "engine": service.pipe.engine}
    result(whole, as_json, [line])
    sys.stdout.flush()
