"""`python -m tests.launcher PROCESSES MODULE [WORDS]`: a module as `python -m` runs it, with the traces of all tests.

Several processes are forked from one that has loaded the libraries, which would take each 6 s of CPU time, and told of each other as those
of `accelerate launch` are.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

TRACES = "QUAD_TEST_TRACES"  # the environment's name of where traces are shared
LIBRARIES = ("torch.onnx", "torch._dynamo", "onnxscript", "diffusers", "quad.build.build")


def _share_traces() -> None:
    from quad.compile import export
    from tests.exports import sharing

    export.traced = sharing(Path(os.environ[TRACES]))


def _run(module: str, words: Sequence[str]) -> None:
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _child(rank: int, port: int, processes: int, module: str, words: Sequence[str]) -> int:
    """One process of several: the variables are torchrun's, whose agent keeps the store that all of them meet at."""
    number = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in number.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    try:
        _run(module, words)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main(processes: int, module: str, *words: str) -> None:
    """Run it, and end as it does; of several, with the first exit code that is not 0."""
    if "build" in words and TRACES in os.environ:
        _share_traces()
    if processes == 1:
        return _run(module, words)
    for library in LIBRARIES:
        importlib.import_module(library)
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            os._exit(_child(rank, store.port, processes, module, words))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(next((code for code in codes if code), 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
