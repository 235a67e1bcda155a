"""`quad install`: a pack from a repository becomes the version of its adapter that runs."""

from __future__ import annotations

from quad.cli.run import BundleDir, EngineName
from quad.cli.show import Json, result
from quad.cli.smoke import smoke_run
from quad.cli.stores import RootFile, StoreDir, Url, Wishes, open_device


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
        done = [call.device.install(wish, smoke_run(bundle, engine)) for wish in adapters]
    lines = [f"{entry.name}:{entry.version}  {'installed' if entry.switched else 'runs already'}" for entry in done]
    result({"store": str(call.store), "installed": done, "changes": call.changes}, as_json, [*lines, f"in {call.store}"])
