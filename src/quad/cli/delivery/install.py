"""`quad install`: a pack from a repository becomes the version of its adapter that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quad.cli.delivery.device import AdapterVersions, Redirects, RepositoryOptions, RootFile, Url, open_device
from quad.cli.delivery.trial import smoke_run
from quad.cli.shared_options import BundleDir, EngineName, StoreDir
from quad.cli.show import Json, note, result

if TYPE_CHECKING:
    from quad.delivery.device.events import Installation


def install(
    bundle: BundleDir,
    adapters: AdapterVersions,
    url: Url = None,
    store: StoreDir = None,
    root: RootFile = None,
    redirect_to: Redirects = None,
    engine: EngineName = "auto",
    as_json: Json = False,
) -> None:
    """Install adapters: fetched, verified, tried, and then switched to."""
    with open_device("quad install", bundle, store, RepositoryOptions(url=url, root=root, redirects=redirect_to)) as call:
        installations: list[Installation] = []
        try:
            for adapter in adapters:
                installations.append(call.device.install(adapter, smoke_run(bundle, engine)))
        except BaseException:
            for installation in installations:
                note(f"{_line(installation)}, before what follows")
            raise
    lines = [*map(_line, installations), f"in {call.store}"]
    result({"store": str(call.store), "installed": installations, "changes": call.changes}, as_json, lines)


def _line(installation: Installation) -> str:
    return f"{installation.name}:{installation.version}  {'installed' if installation.switched else 'runs already'}"
