"""Whether tests hold on starved cores.

    python -m benchmarks.under_load [TEST ...] [--times 20] [--loops 3] [--json FILE]

Runs the tests again and again beside processes that do nothing but count, and prints one line a run. Ends with the number of runs that
failed. By default the tests that kill processes and attack a repository, which wait for others and so feel a busy machine first.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.rig.report import command_line, write_report

DEFAULT_TESTS = ("tests/delivery/device/test_kill.py", "tests/delivery/device/test_attacks.py")
_COUNT = "while True: pass"


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """As many processes that count while the block runs."""
    counters = [subprocess.Popen([sys.executable, "-c", _COUNT]) for _ in range(loops)]
    try:
        yield
    finally:
        for counter in counters:
            counter.kill()
            counter.wait()


def run_once(tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing was printed"]
    return done.returncode == 0, lines[-1]


def main() -> int:
    """Print a line a run; the number of runs that failed."""
    parser = command_line(__doc__)
    parser.add_argument("tests", nargs="*", default=list(DEFAULT_TESTS))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--loops", type=int, default=3, help="processes that only count")
    options = parser.parse_args()
    lines, failed = [], 0
    with busy(options.loops):
        for number in range(1, options.times + 1):
            start = time.monotonic()
            passed, line = run_once(options.tests)
            failed += not passed
            lines.append(f"{number}/{options.times} {'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s: {line}")
            print(lines[-1], flush=True)
    write_report(options.json, {"times": options.times, "loops": options.loops, "failed": failed, "runs": lines})
    print(f"{options.times - failed} of {options.times} runs passed beside {options.loops} busy processes")
    return min(failed, 255)


if __name__ == "__main__":
    raise SystemExit(main())
