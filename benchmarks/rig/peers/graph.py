"""A graph of quad's, or a merged float graph, in the engine that quad uses, as a peer.

    python -m benchmarks.rig.peers.graph ENGINE PRECISION FLOATS FILE THREADS

FLOATS is the precision that OpenVINO is told for what stays float: `f32`, or `bf16`, which it takes by itself where the processor has it.
"""

import sys
from pathlib import Path

from benchmarks.rig.peers.loop import serve
from benchmarks.rig.sides import Loaded, hint_floats

REGISTERED = 10  # adapters in memory while switching is timed


def main():
    """Load and serve."""
    engine, precision, floats, file, threads = sys.argv[1:]
    if floats != "f32":
        hint_floats(floats)
    loaded = Loaded(engine, precision=precision, file=Path(file), threads=int(threads))
    switch = (lambda: loaded.switch((REGISTERED,))[REGISTERED]) if loaded.has_slots else (lambda: None)
    serve(lambda: [loaded.timed_step(None)], switch, {"loaded_s": loaded.seconds})


if __name__ == "__main__":
    main()
