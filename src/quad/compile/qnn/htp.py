"""One component for Qualcomm's HTP: a graph of integers (`quad.compile.placement.integer_graph`) --compile_htp--> a context binary for one
chip, its pointer and its ports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from quad.compile.artifact import MODEL_FILE, save_graph
from quad.compile.placement.integer_graph import IntegerGraph
from quad.compile.qnn.chips import Soc
from quad.compile.qnn.compile_graph import compile_graph
from quad.compile.qnn.own_process import compile_in_own_process
from quad.core.digests import canonical_json, digest, file_digest
from quad.core.errors import BackendError, UnsupportedError, mismatch
from quad.core.ports import PORTS_FILE
from quad.core.storage.files import TEMPORARY, write_bytes, writing_to


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """Facts about one compiled graph.

    Args:
        placement: `nodes`, `on_target`, `on_cpu`, `partitions`.
        identity: digest of the placed graph, its ports and the chip. The binary's own differs each time: its objects are numbered in the
            order in which a process compiled.
        peak_ram_bytes: of the compiler's process; 0 where it was this one.
    """

    placement: dict[str, int]
    identity: str
    peak_ram_bytes: int = 0


def compile_htp(graph: IntegerGraph, folder: Path, soc: Soc) -> Compiled:
    """Compile into `folder`: `model.onnx` (a pointer), `model_qnn.bin` and `ports.json`.

    A graph of many weights is compiled in a process of its own.

    Raises:
        BackendError: the compiler is not installed, or does not take the whole graph.
    """
    placed, pointer = folder / "placed.onnx", folder / MODEL_FILE
    with writing_to(folder, TEMPORARY):
        folder.mkdir(parents=True)
        beside = save_graph(graph.model, placed)
    sources = [file_digest(folder / name) for name in (placed.name, *beside)]
    peak_ram_bytes = _compile(placed, pointer, soc, apart=bool(beside))
    for name in (placed.name, *beside):
        (folder / name).unlink()
    write_bytes(folder / PORTS_FILE, canonical_json(graph.ports))
    identity = digest([sources, msgspec.to_builtins(graph.ports), soc.name])
    return Compiled(placement=placement_of(pointer, graph.nodes), identity=identity, peak_ram_bytes=peak_ram_bytes)


def _compile(placed: Path, pointer: Path, soc: Soc, *, apart: bool) -> int:
    """The largest resident size of the compiler's process, 0 where it is this one."""
    if apart:
        return compile_in_own_process(placed, pointer, soc.name)
    compile_graph(placed, pointer, soc)
    return 0


def require_compiler() -> None:
    """Say that Qualcomm's compiler is missing before minutes are spent on what it would compile.

    Raises:
        BackendError: its package is not installed, or cannot be loaded on this machine.
    """
    try:
        from quad.runtime.engines.qnn import htp_devices  # its package is an extra
    except ImportError as error:
        hint = "install it: pip install 'quad[qnn]'"
        raise BackendError(mismatch("target qnn-htp", f"the package {error.name}", "none", hint)) from error
    htp_devices()


def placement_of(pointer: Path, nodes: int) -> dict[str, int]:
    """Where a compiled graph's operators run, counted in its pointer: one EPContext node a partition, any other node is left to the CPU.

    Args:
        nodes: operators of the placed graph.

    Raises:
        UnsupportedError: they are not in one partition.
    """
    kinds = Counter(node.op_type for node in onnx.load(str(pointer), load_external_data=False).graph.node)
    partitions = kinds.pop("EPContext", 0)
    left = sum(kinds.values())
    if partitions != 1 or left:
        split = f"{partitions} with {left} nodes on the CPU"
        raise UnsupportedError(mismatch(f"{pointer.parent.name} on the HTP", "one partition", split, "report it with the model's name"))
    return {"nodes": nodes, "on_target": nodes - left, "on_cpu": left, "partitions": partitions}
