"""`quad list`: the adapters that are installed, and those that were on offer when the repository was read last."""

from __future__ import annotations

from quad.cli.delivery.device import listed_lines, open_device
from quad.cli.shared_options import BundleDir, StoreDir
from quad.cli.show import Json, result


def list(bundle: BundleDir, store: StoreDir = None, as_json: Json = False) -> None:
    """Show what is installed, on offer and revoked; it needs no network."""
    with open_device("quad list", bundle, store) as call:
        listed = call.device.listing()
    result(
        {"store": str(call.store), "adapters": listed},
        as_json,
        listed_lines(listed) or ["nothing is installed, nothing is known of a repository"],
    )
