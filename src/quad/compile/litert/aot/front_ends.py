"""Front ends of vendors whose compiler is not to be had as a package: run where their SDK lies on this machine.

A front end says which operators it takes and writes them down in the vendor's terms. That proves nothing about numbers, and what it makes
is not kept: nothing here could run it.
"""

from __future__ import annotations

import os
from pathlib import Path

from quad.compile.litert.aot.chips import Chip, Vendor
from quad.compile.litert.aot.plugin import PluginRun, apply_plugin
from quad.core.storage.files import scratch_directory


def sdk_folder(vendor: Vendor) -> Path | None:
    """The folder with a vendor's library, by the variable that its plugin reads; None where there is none."""
    places = filter(None, os.environ.get(vendor.variable, "").split(os.pathsep))
    return next((folder for place in places if ((folder := Path(place) / vendor.below) / vendor.library).is_file()), None)


def missing_sdk(vendor: Vendor) -> str:
    """Why nothing is known of a vendor's chips here, and how to mend that."""
    return f"the plugin of {vendor.name} needs {vendor.library}, which {vendor.variable} does not lead to"


def run_front_end(model: Path, chip: Chip, sdk: Path) -> PluginRun:
    """Have a vendor's front end take a file; what it writes is not kept.

    Args:
        model: the `.tflite` file.
        sdk: of `sdk_folder`.

    Raises:
        BackendError: LiteRT's package is not installed, or its program does not run.
    """
    with scratch_directory() as scratch:
        return apply_plugin(model, chip, scratch / model.name, libraries=[sdk])
