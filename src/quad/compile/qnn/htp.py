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
from quad.core.digests import canonical_json, digest, file_digest
from quad.core.errors import BackendError, UnsupportedError, mismatch
from quad.core.ports import PORTS_FILE
from quad.core.storage.files import TEMPORARY, write_bytes, writing_to
from quad.runtime.engines.engine import first_line

_UNWRITTEN = "Failed to write context cache"  # what the compiler says of a full disk


@dataclass(frozen=True)
class Compiled:
    """Facts about one compiled graph.

    Args:
        placement: `nodes`, `on_target`, `on_cpu`, `partitions`.
        identity: digest of the placed graph, its ports and the chip. The binary's own differs each time: its objects are numbered in the
            order in which a process compiled.
    """

    placement: dict[str, int]
    identity: str


def compile_htp(graph: IntegerGraph, folder: Path, soc: Soc) -> Compiled:
    """Compile into `folder`: `model.onnx` (a pointer), `model_qnn.bin` and `ports.json`.

    Raises:
        BackendError: the compiler is not installed, or does not take the whole graph.
    """
    placed, pointer = folder / "placed.onnx", folder / MODEL_FILE
    with writing_to(folder, TEMPORARY):
        folder.mkdir(parents=True)
        beside = save_graph(graph.model, placed)
    sources = [file_digest(folder / name) for name in (placed.name, *beside)]
    _compile(placed, pointer, soc)
    for name in (placed.name, *beside):
        (folder / name).unlink()
    write_bytes(folder / PORTS_FILE, canonical_json(graph.ports))
    return Compiled(_placement(pointer, graph.nodes), digest([sources, msgspec.to_builtins(graph.ports), soc.name]))


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


def compiler_options(soc: Soc) -> dict[str, str]:
    """Of the provider, to compile for one chip."""
    return {"soc_model": str(soc.model), "htp_arch": str(soc.arch), "htp_graph_finalization_optimization_mode": "3"}


def _compile(placed: Path, pointer: Path, soc: Soc) -> None:
    from quad.runtime.engines.qnn import htp_session  # as above

    config = {"ep.context_enable": "1", "ep.context_file_path": str(pointer), "ep.context_embed_mode": "0"}
    try:
        htp_session(placed, options=compiler_options(soc), config=config)
    except BackendError as error:
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        if _UNWRITTEN in reason:
            refusal = f"{pointer.parent}: cannot write (no room for the binary)"
            raise BackendError(f"{refusal}; nothing was written, free some space or {TEMPORARY}") from error
        where, hint = f"{pointer.parent.name} on {soc.name}", "report it with the model's name, and try another --soc"
        raise BackendError(mismatch(where, "a graph that the compiler takes whole", reason, hint)) from error


def _placement(pointer: Path, nodes: int) -> dict[str, int]:
    """Counted in the pointer that the compiler wrote: one EPContext node a partition, any other node is left to the CPU."""
    kinds = Counter(node.op_type for node in onnx.load(str(pointer), load_external_data=False).graph.node)
    partitions = kinds.pop("EPContext", 0)
    left = sum(kinds.values())
    if partitions != 1 or left:
        split = f"{partitions} with {left} nodes on the CPU"
        raise UnsupportedError(mismatch(f"{pointer.parent.name} on the HTP", "one partition", split, "report it with the model's name"))
    return {"nodes": nodes, "on_target": nodes - left, "on_cpu": left, "partitions": partitions}
