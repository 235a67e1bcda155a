"""Options and arguments that several verbs have, and the checks that go with them."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quad.core.errors import UsageError, mismatch
from quad.core.storage.files import require_file, require_writable
from quad.core.storage.reading import file_status

if TYPE_CHECKING:
    from quad.runtime.provenance.png import PngOptions

REFERENCES = ("toyland", "toyland-xl")  # the models that the package ships

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A diffusers directory, a checkpoint FILE.safetensors, a hub id (owner/name[@revision]), or toyland(-xl), which is shipped.",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="A LoRA's path or hub id under a name; repeat it. toyland(-xl) brings its own.",
        metavar="NAME=PATH",
        show_default=False,
    ),
]
AdaptersToBuild = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="A LoRA file or directory under a name, and how it is meant to be run; repeat it. toyland(-xl) brings its own.",
        metavar="NAME=PATH[,sampler=KIND:STEPS][,guidance=G]", show_default=False,
    ),
]  # fmt: skip
UnusedKeys = Annotated[bool | None, typer.Option("--allow-unused-keys", help="Pass over LoRA keys that match nothing in the model.")]
BundleDir = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory, as quad build writes it.", show_default=False)]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding", help="A textual inversion: this word stands for the file's vectors; repeat it.", metavar="NAME=FILE",
        show_default=False,
    ),
]  # fmt: skip
Vae = Annotated[
    Path | None,
    typer.Option("--vae", help="The autoencoder in place of the model's own, as quad build was told.", metavar="FILE|DIR",
                 show_default="the model's own"),
]  # fmt: skip
EngineName = Annotated[str, typer.Option("--engine", help="What executes the graphs: auto takes the bundle's first that is installed.")]
FloatType = Annotated[
    str,
    typer.Option("--float", help="What the U-Net's floats are computed in: auto takes bf16 where it was proven.", metavar="auto|f32|bf16"),
]
MemoryPlan = Annotated[
    str,
    typer.Option(help="Which graphs stay in memory: keep-all, balanced (the U-Net) or minimal (none).", metavar="PLAN"),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.", metavar="N", min=1, show_default=False)]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval", help="Where guidance counts, from noise, 0, to picture, 1; elsewhere a step takes one call in place of two.",
        metavar="START:END", show_default="0:1",
    ),
]  # fmt: skip
DeviceName = Annotated[
    str,
    typer.Option("--device", help="What torch computes on; auto takes an accelerator where there is one.", metavar="auto|cpu|cuda|mps"),
]
Reuse = Annotated[
    int,
    typer.Option(help="Compute every N-th step whole, and those between from its deep feature; for bundles of quad build --reuse.",
                 metavar="N", min=1),
]  # fmt: skip
TinyDecoder = Annotated[
    bool,
    typer.Option("--tiny-decoder", help="Decode by the small decoder, previews too; for bundles of quad build --tiny-decoder."),
]
Mark = Annotated[bool, typer.Option("--mark", help="Say in the picture's XMP that a model made it.")]
Sign = Annotated[
    Path | None,
    typer.Option(help="Sign content credentials (C2PA) by a PEM file of a certificate chain and key.", metavar="CERT", show_default=False),
]
Samples = Annotated[int, typer.Option("--n", help="Held-out samples a task.", metavar="N")]
StoreDir = Annotated[
    Path | None,
    typer.Option("--store", help="Where adapters are installed; by default BUNDLE.adapters.", metavar="DIR", show_default=False),
]


def check_report_dir(output: Path | None, *files: str) -> None:
    """Refuse before the work is done, not after it.

    Args:
        files: what is written into it in the end; one name for all files of a folder.

    Raises:
        UsageError: the place, or what it would lie in, is a file. InputError: something else than a file has one of the names.
        BackendError: nothing can be there.
    """
    if output is None:
        return
    places = (output.absolute(), *output.absolute().parents)
    status, nearest = next(((status, place) for place in places if (status := file_status(place)) is not None), (None, None))
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise UsageError(mismatch("-o", "a directory to write", f"a file {nearest}", "choose another name"))
    for name in files:
        require_file(output / name)
        require_writable(output / name)


def local_adapters(adapters: Mapping[str, Path]) -> dict[str, Path]:
    """Adapters by name: `toyland:NAME` and `toyland-xl:NAME` are shipped ones, and those are fetched that are hub ids and no paths here.

    Raises:
        UsageError: none is shipped under that name. InputError: there is none of that id, or the hub is not to be reached.
    """
    adapters = {name: _shipped(path) or path for name, path in adapters.items()}
    if all(path.is_absolute() or len(path.parts) < 2 or _is_there(path) for path in adapters.values()):
        return dict(adapters)  # none can be an id
    try:
        from quad.model.base.hub_adapters import resolve_adapter
    except ModuleNotFoundError:  # an install that asks no hub: whoever opens the path says that nothing is there
        return dict(adapters)
    return {name: resolve_adapter(path) for name, path in adapters.items()}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True


def with_shipped(values: Sequence[str]) -> list[str]:
    """`NAME=PATH` values, where a shipped model stood for all adapters that it brings and `toyland:NAME` for one under its own name."""
    expanded: list[str] = []
    for value in values:
        head, _, rest = value.partition(",")
        model, shipped, name = head.partition(":")
        if head in REFERENCES and not rest:
            from quad.zoo.reference import reference_adapters

            expanded += [f"{name}={head}:{name}" for name in reference_adapters(head)]
        else:
            expanded.append(f"{name}={value}" if model in REFERENCES and shipped and "=" not in head else value)
    return expanded


def _shipped(path: Path) -> Path | None:
    """The file of `toyland:NAME`, of either model; None for any other path."""
    model, shipped, name = path.name.partition(":")
    if len(path.parts) != 1 or not shipped or model not in REFERENCES:
        return None
    from quad.zoo.reference import shipped_adapter

    return shipped_adapter(name, model)


def model_directory(model: str) -> Path:
    """The directory or checkpoint of a model that was named on the command line: a shipped one, a path, or a hub id.

    Raises:
        InputError: there is no such model.
    """
    from quad.model.base.hub import resolve_model
    from quad.zoo.reference import reference_dir

    return reference_dir(model) if model in REFERENCES else resolve_model(model)


def png_options(*, parameters: bool, mark: bool, sign: Path | None) -> PngOptions:
    """The options of both verbs together; a certificate is tried before any picture is made.

    Raises:
        UnsupportedError: the extra for signing is not installed. InputError: certificate and key do not sign.
    """
    from quad.runtime.provenance.png import PngOptions

    if sign is None:
        return PngOptions(parameters=parameters, mark=mark)
    from quad.runtime.provenance.credentials import ContentSigner

    return PngOptions(parameters=parameters, mark=mark, sign=ContentSigner.open(sign).sign)
