"""`quad rollback`: the version of an adapter that ran before runs again."""

from __future__ import annotations

from typing import Annotated

import typer

from quad.cli.delivery.device import open_device
from quad.cli.delivery.trial import smoke_run
from quad.cli.shared_options import BundleDir, EngineName, StoreDir
from quad.cli.show import Json, result

Name = Annotated[str, typer.Argument(metavar="NAME", help="An installed adapter.", show_default=False)]


def rollback(bundle: BundleDir, adapter: Name, store: StoreDir = None, engine: EngineName = "auto", as_json: Json = False) -> None:
    """Go back to the version before; a second rollback returns. It needs no network."""
    with open_device("quad rollback", bundle, store) as call:
        installation = call.device.rollback(adapter, smoke_run(bundle, engine))
    facts = {"store": str(call.store), "installed": [installation], "changes": call.changes}
    result(facts, as_json, [f"{installation.name}:{installation.version}  runs again, {installation.name}:{installation.previous} is kept"])
