"""`quad fetch`: what a repository offers, and packs brought here to be installed later."""

from __future__ import annotations

from typing import Annotated

import typer

from quad.cli.delivery.device import Redirects, RepositoryOptions, RootFile, Url, listed_lines, open_device
from quad.cli.shared_options import BundleDir, StoreDir
from quad.cli.show import Json, result

Packs = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME[:VERSION]...", help="Packs to bring here; none reads what is on offer.", show_default=False),
]


def fetch(
    bundle: BundleDir,
    adapters: Packs = None,
    url: Url = None,
    store: StoreDir = None,
    root: RootFile = None,
    redirect_to: Redirects = None,
    as_json: Json = False,
) -> None:
    """Read what a repository offers, and bring packs here; nothing is installed."""
    with open_device("quad fetch", bundle, store, RepositoryOptions(url=url, root=root, redirects=redirect_to)) as call:
        offers = call.device.fetch(adapters or [])
        listed = call.device.listing()
    fetched = [{"name": offer.terms.name, "version": offer.terms.version, "size_bytes": offer.size_bytes} for offer in offers]
    facts = {"store": str(call.store), "fetched": fetched, "adapters": listed, "changes": call.changes}
    result(facts, as_json, [*(f"{offer.label}  fetched" for offer in offers), *listed_lines(listed)])
