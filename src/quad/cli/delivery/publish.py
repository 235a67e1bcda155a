"""`quad publish`: the publisher's side of delivery, one signed directory that any static host can serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from quad.cli.delivery.passwords import read_password
from quad.cli.extras import check_delivery
from quad.cli.show import Json, note, result, size
from quad.core.byte_size import parse_bytes
from quad.core.errors import UsageError, mismatch

if TYPE_CHECKING:
    from quad.delivery.publisher.repository import Repository

Repo = Annotated[Path, typer.Argument(metavar="REPO", help="The directory that is served.", show_default=False)]
KeyDir = Annotated[Path, typer.Option("--keys", help="Where the key files lie; never inside REPO.", metavar="DIR", show_default=False)]
RootKeyDir = Annotated[
    Path | None,
    typer.Option("--root-keys", help="Where the root's keys lie, where that is another place.", metavar="DIR", show_default=False),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option("--password-file", help="A file with the password; else QUAD_PASSWORD, or a prompt.", metavar="F", show_default=False),
]
Packs = Annotated[list[Path], typer.Argument(metavar="PACK...", help="Packs, as quad adapt writes them.", show_default=False)]
Runtime = Annotated[
    str | None,
    typer.Option(help="Releases of quad that can run them, the second one no more; by default from this one to the next major.",
                 metavar="FROM..BEFORE", show_default=False),
]  # fmt: skip
MinRam = Annotated[
    str | None,
    typer.Option("--min-ram", help="Memory a device must have in all, as 1500MB or 2GB; by default what the tensors take.", metavar="SIZE",
                 show_default=False),
]  # fmt: skip
AdapterVersion = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="An adapter, or one version of it.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why, in a few words; devices show it.", metavar="S")]
Roles = Annotated[list[str], typer.Argument(metavar="ROLE...", help="root, targets, snapshot, timestamp.", show_default=False)]

ServedUrl = Annotated[
    str | None,
    typer.Option("--url", help="Where devices read the repository, compared before anything is signed; kept after the first time.",
                 metavar="URL", show_default=False),
]  # fmt: skip
NoCompare = Annotated[
    bool, typer.Option("--no-compare", help="Believe nothing that is served: a key was stolen, or the server is gone for good.")
]


app = typer.Typer(help="Offer packs to devices: a signed directory that any static host can serve.", no_args_is_help=True)


@app.command()
def init(repo: Repo, keys: KeyDir, root_keys: RootKeyDir = None, password_file: PasswordFile = None, as_json: Json = False) -> None:
    """Make keys and an empty repository."""
    root = _open(repo, keys, root_keys, password_file, new=True).init()
    lines = [f"{repo}  a repository, keys in {keys}", f"give {root} to devices by another way than the network"]
    result({"repository": str(repo), "keys": str(keys), "root": str(root)}, as_json, lines)


@app.command()
def add(
    repo: Repo,
    packs: Packs,
    keys: KeyDir,
    runtime: Runtime = None,
    min_ram: MinRam = None,
    url: ServedUrl = None,
    no_compare: NoCompare = False,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Offer packs, each as the next version of its adapter."""
    first, before = _range(runtime)
    bound = None if min_ram is None else parse_bytes("--min-ram", min_ram)
    repository = _open(repo, keys, None, password_file, compared=_Compared(url, no_compare))
    from quad.delivery.publisher.terms import PublishTerms

    offers = repository.add(packs, PublishTerms(first, before, bound))
    facts = [{"terms": offer.terms, "sha256": offer.sha256, "size_bytes": offer.size_bytes} for offer in offers]
    result({"offers": facts}, as_json, [f"{offer.label}  {size(offer.size_bytes)}, {offer.sha256[:12]}" for offer in offers])


@app.command()
def revoke(
    repo: Repo,
    adapter: AdapterVersion,
    keys: KeyDir,
    reason: Reason = "",
    url: ServedUrl = None,
    no_compare: NoCompare = False,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Withdraw a pack: no device installs it, and those that have it stop to run it."""
    revoked = _open(repo, keys, None, password_file, compared=_Compared(url, no_compare)).revoke(adapter, reason)
    result({"revoked": revoked}, as_json, [f"{entry.name}:{entry.version}  revoked" for entry in revoked])


@app.command()
def rotate(
    repo: Repo,
    roles: Roles,
    keys: KeyDir,
    root_keys: RootKeyDir = None,
    url: ServedUrl = None,
    no_compare: NoCompare = False,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Give roles new keys; the old ones count no more."""
    version = _open(repo, keys, root_keys, password_file, compared=_Compared(url, no_compare)).rotate(roles)
    result({"root": version, "roles": roles}, as_json, [f"root {version}: new keys of {', '.join(roles)}"])


@app.command()
def refresh(
    repo: Repo,
    keys: KeyDir,
    url: ServedUrl = None,
    no_compare: NoCompare = False,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Sign what expires anew; to be called at least every few days."""
    signatures = _open(repo, keys, None, password_file, compared=_Compared(url, no_compare)).refresh()
    for role in signatures.ageing:
        remedy = "quad publish rotate" if role == "root" else "its key was not there"
        note(f"{role}.json expires in {signatures.left_days[role]} days: {remedy}")
    lines = [f"signed {', '.join(signatures.signed)}", *(f"{role}: {days} days left" for role, days in signatures.left_days.items())]
    result(signatures, as_json, lines)


@app.command()
def repair(
    repo: Repo,
    keys: KeyDir,
    url: ServedUrl = None,
    no_compare: NoCompare = False,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Rebuild lost metadata, and join this copy with what another machine has published."""
    repaired = _open(repo, keys, None, password_file, compared=_Compared(url, no_compare)).repair()
    lines = [f"joined {words}" for words in repaired.joined]
    lines += [f"{before} is {after} now" for before, after in repaired.renumbered.items()]
    result(repaired, as_json, [*lines, f"signed {', '.join(repaired.signed)}: upload it"] if repaired.signed else ["nothing to repair"])


class _Compared(NamedTuple):
    """The options that say with what a copy is compared."""

    url: str | None = None
    no_compare: bool = False


_AS_BEFORE = _Compared()


def _open(
    repo: Path, keys: Path, root_keys: Path | None, password_file: Path | None, new: bool = False, compared: _Compared = _AS_BEFORE
) -> Repository:
    check_delivery("quad publish")
    from quad.delivery.publisher.keys import Keys
    from quad.delivery.publisher.repository import Repository
    from quad.delivery.publisher.working_copy import ServedComparison

    comparison = ServedComparison(url=compared.url, wanted=not compared.no_compare, on_note=note)
    return Repository(repo, Keys(keys, read_password(password_file, new), root_keys), comparison)


def _range(text: str | None) -> tuple[str, str]:
    if text is None:
        from quad import __version__

        return __version__, str(int(__version__.split(".")[0]) + 1)
    first, dots, before = text.partition("..")
    if not dots:
        raise UsageError(mismatch("--runtime", "FROM..BEFORE", repr(text), "write --runtime 0.1..1"))
    return first, before
