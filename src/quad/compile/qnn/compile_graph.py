"""The call of Qualcomm's compiler: a placed graph's file to a context binary for one chip and its pointer."""

from __future__ import annotations

from pathlib import Path

from quad.compile.qnn.chips import Soc
from quad.core.errors import BackendError, mismatch
from quad.core.storage.files import TEMPORARY
from quad.runtime.engines.engine import first_line

_UNWRITTEN = "Failed to write context cache"  # what the compiler says of a full disk


def compiler_options(soc: Soc) -> dict[str, str]:
    """Of the provider, to compile for one chip."""
    return {"soc_model": str(soc.model), "htp_arch": str(soc.arch), "htp_graph_finalization_optimization_mode": "3"}


def compile_graph(placed: Path, pointer: Path, soc: Soc) -> None:
    """Compile the graph at `placed`; `pointer` and the binary beside it are written.

    Raises:
        BackendError: the compiler is not installed, or does not take the graph.
    """
    from quad.runtime.engines.qnn import htp_session  # its package is an extra

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
