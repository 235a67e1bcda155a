"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform

from quad.evaluate.bench.results import Machine
from quad.runtime.engines.engine import default_threads
from quad.runtime.machine import PACKAGES, cpu_model, package_version


def machine(engine: str, threads: int) -> Machine:
    """This machine.

    Args:
        engine: whose package's version is told; an engine of no known package has none.
        threads: the number that the engine was told to use.
    """
    return Machine(
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        usable_cores=default_threads(),
        threads=threads,
        system=platform.platform(),
        versions={"python": platform.python_version(), **_versions("quad", "numpy", PACKAGES.get(engine, engine))},
    )


def _versions(*packages: str) -> dict[str, str]:
    return {package: version for package in packages if (version := package_version(package)) is not None}
