"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quad.evaluate.bench.results import Machine
from quad.runtime.engines.engine import default_threads

# Engine name -> the distribution whose version says what ran.
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "qnn": "onnxruntime-qnn"}


def cpu_model() -> str:
    """The processor's name as the system tells it; its architecture where it does not."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return next(filter(None, named), "") or platform.processor() or platform.machine()


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
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
