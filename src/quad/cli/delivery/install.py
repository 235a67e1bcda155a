"""`quad install`: a pack from a repository becomes the version of its adapter that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quad.cli.delivery.device import RootFile, StoreDir, Url, Wishes, open_device
from quad.cli.delivery.trial import smoke_run
from quad.cli.run import BundleDir, EngineName
from quad.cli.show import Json, note, result

if TYPE_CHECKING:
    from quad.delivery.device.events import Installation


def install(
    bundle: BundleDir,
    adapters: Wishes,
    url: Url = None,
    store: StoreDir = None,
    root: RootFile = None,
    engine: EngineName = "auto",
    as_json: Json = False,
) -> None:
    """Install adapters: fetched, verified, tried, and then switched to."""
    with open_device("quad install", bundle, store, url, root) as call:
        done: list[Installation] = []
        try:
            for wish in adapters:
                done.append(call.device.install(wish, smoke_run(bundle, engine)))
        except BaseException:
            for entry in done:
                note(f"{_told(entry)}, before what follows")
            raise
    lines = [*map(_told, done), f"in {call.store}"]
    result({"store": str(call.store), "installed": done, "changes": call.changes}, as_json, lines)


def _told(entry: Installation) -> str:
    return f"{entry.name}:{entry.version}  {'installed' if entry.switched else 'runs already'}"
