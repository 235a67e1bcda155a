"""Qualcomm's compiler in a process of its own: what it holds, several times the graph's weights, goes back when it is done."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from quad.compile.qnn.chips import SOCS
from quad.compile.qnn.compile_graph import compile_graph
from quad.core.errors import BackendError, mismatch
from quad.core.memory import peak_ram_bytes, release_memory


class Outcome(msgspec.Struct, frozen=True):
    """A compilation as its process tells it.

    Args:
        peak_ram_bytes: the process's largest resident size.
        refusal: the error in one line; empty where there was none.
    """

    peak_ram_bytes: int
    refusal: str = ""


def compile_in_own_process(placed: Path, pointer: Path, soc: str) -> int:
    """As `compile_graph`.

    Args:
        soc: name of the chip.

    Returns:
        The process's largest resident size, bytes.

    Raises:
        BackendError: as there, or the process ended without an answer.
    """
    release_memory()
    command = [sys.executable, "-m", __name__, str(placed), str(pointer), soc]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    try:
        outcome = msgspec.json.decode(process.stdout, type=Outcome)
    except msgspec.MsgspecError as error:
        if process.returncode == -signal.SIGKILL:  # as the system does where memory is over
            expected, ending, hint = "enough memory for Qualcomm's compiler", "too little", "end other programs or use a larger machine"
        else:
            expected, ending, hint = "a compiler that ends well", f"exit code {process.returncode}", "report it with the model's name"
        raise BackendError(mismatch(f"{pointer.parent.name} on {soc}", expected, ending, hint)) from error
    if outcome.refusal:
        raise BackendError(outcome.refusal)
    return outcome.peak_ram_bytes


def main() -> None:
    """Compile the graph that the command line names, and print an `Outcome`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("placed", type=Path)
    parser.add_argument("pointer", type=Path)
    parser.add_argument("soc", choices=SOCS)
    options = parser.parse_args()
    refusal = ""
    try:
        compile_graph(options.placed, options.pointer, SOCS[options.soc])
    except BackendError as error:
        refusal = str(error)
    sys.stdout.buffer.write(msgspec.json.encode(Outcome(peak_ram_bytes(), refusal)))


if __name__ == "__main__":
    main()
