"""Two machines publish one repository as chance has it, devices fetch between: nothing is lost, every conflict is told.

    python -m benchmarks.two_publishers [--histories 500] [--seed 0] [--json FILE]

Prints what happened, and exits with 1 where a pack or a revocation was lost, a conflict was not told, or a device did not recover.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.rig.report import command_line, write_report

from tests.delivery.two_publishers import Histories


def main() -> int:
    """Print the figures; 1 where something was wrong."""
    parser = command_line(__doc__)
    parser.add_argument("--histories", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what a device refuses is counted
    events: Counter[str] = Counter()
    wrong: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="quad-") as folder:
        histories = Histories(Path(folder) / "home")
        for seed in range(options.seed, options.seed + options.histories):
            history = histories.run(seed)
            events += history.events
            if history.wrong:
                wrong[seed] = history.wrong
    facts = {"histories": options.histories, "events": dict(events), "wrong": wrong}
    write_report(options.json, facts)
    print(json.dumps(facts, indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
