"""The machine that a bundle would run on: its processor, memory and engines, and what of a bundle it can hold."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quad.core.errors import BackendError
from quad.core.manifest import BundleManifest, Component, GraphFiles
from quad.runtime.engines.engine import ENGINES, open_engine
from quad.runtime.engines.graph import KEEP_ALL, PLANS

# Engine name -> the distribution whose version says what runs.
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "qnn": "onnxruntime-qnn", "litert": "ai-edge-litert"}
# Instructions that decide how fast integers and bfloat16 are, in the words of /proc/cpuinfo on x86 and on Arm.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve")
_CPUINFO, _MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class MachineMemory:
    """Of the machine, bytes: all of it, and what can be had now; None where the system does not say."""

    total: int | None
    available: int | None


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """One engine on this machine.

    Args:
        version: of its package; None where it is not there.
        lack: why it cannot be used, one line; None where it can.
    """

    name: str
    version: str | None
    lack: str | None


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name as the system tells it; its architecture where it does not."""
    named = (line.partition(":")[2].strip() for line in _lines(cpuinfo) if line.startswith(("model name", "Hardware")))
    return next(filter(None, named), "") or platform.processor() or platform.machine()


def cpu_features(cpuinfo: Path = _CPUINFO) -> tuple[str, ...] | None:
    """Those of `FEATURES` that the processor has; None where the system does not list any."""
    listed = [line.partition(":")[2].split() for line in _lines(cpuinfo) if line.lower().startswith(("flags", "features"))]
    return tuple(name for name in FEATURES if name in listed[0]) if listed else None


def memory(meminfo: Path = _MEMINFO) -> MachineMemory:
    """Total and available memory as Linux says; elsewhere nothing is known."""
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in _lines(meminfo))}

    def size(name: str) -> int | None:
        words = fields.get(name)
        return int(words[0]) * 1024 if words and words[0].isdigit() else None

    return MachineMemory(total=size("MemTotal"), available=size("MemAvailable"))


def engine_states(names: Iterable[str] = tuple(ENGINES)) -> list[EngineState]:
    """Every engine, opened as a bundle would open it."""
    return [EngineState(name=name, version=package_version(PACKAGES.get(name, name)), lack=_lack(name)) for name in names]


def package_version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def graph_bytes(manifest: BundleManifest) -> dict[str, int]:
    """Component -> bytes of one graph of it with its weights, that of the size and group that take most."""
    return {
        name: max(sum(manifest.files[file].size_bytes for file in (graph.file, *graph.data_files)) for graph in _graphs(part))
        for name, part in manifest.components.items()
    }


def plan_bytes(manifest: BundleManifest) -> Mapping[str, int]:
    """Memory plan -> bytes of the graph files that are in memory at once, at most; a process needs a little more.

    `keep-all` comes to hold the graphs of all picture sizes and groups of adapters, each with its weights: engines copy most of them, also
    out of a file that graphs share.
    """
    sizes = graph_bytes(manifest)

    def passing_bytes(plan: str) -> int:
        return max((size for name, size in sizes.items() if name not in PLANS[plan]), default=0)

    plans = {plan: sum(sizes.get(name, 0) for name in resident) + passing_bytes(plan) for plan, resident in PLANS.items()}
    graphs = {name: sum(1 for _ in _graphs(part)) for name, part in manifest.components.items()}
    return {**plans, KEEP_ALL: sum(size * graphs[name] for name, size in sizes.items())}


def _graphs(part: Component) -> Iterator[GraphFiles]:
    """Of all groups of adapters and picture sizes."""
    for group in (part, *(part.groups or ())):
        yield from group.graphs


def _lack(engine: str) -> str | None:
    try:
        open_engine(engine, (), "w8a16")
    except BackendError as error:
        return str(error)
    return None


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
