"""Faults of the disk at random moments of delivery (ENOSPC, EIO, EACCES, EROFS, kill, rights taken away): what must hold does.

    python -m benchmarks.delivery_faults [--points 2000] [--seed 0] [--json FILE]

Prints what the work said and what was wrong: a good pack or the trust deleted, neither old nor new running, a repeat that fails, a stray
file. Exits with 1 where something was.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from benchmarks.rig.report import command_line, write_report

from tests.delivery.faults import Bench


def main() -> int:
    """Print the figures; 1 where something was wrong."""
    parser = command_line(__doc__)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what a device refuses is counted
    with tempfile.TemporaryDirectory(prefix="quad-") as folder:
        Path(folder).chmod(0o755)  # a child that has given up root's powers goes through it
        home = Path(folder) / "home"
        home.mkdir()
        bench = Bench(home)
        for seed in range(options.seed, options.seed + options.points):
            bench.run(seed)
    result = bench.result
    facts = {"points": result.points, "told": dict(result.told), "wrong": result.wrong}
    write_report(options.json, facts)
    print(json.dumps(facts, indent=2))
    return 1 if result.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
