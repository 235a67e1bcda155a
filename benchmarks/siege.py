"""A server under siege: pictures that take their decoder long, strangers on its port, and many clients for long.

    python -m benchmarks.siege [--calls 200] [--strangers-s 120] [--pictures 20000] [--json FILE]

A part whose number is 0 is left out. On a tiny model: what is measured is the server. The long pictures are those of a stand-in decoder
that sleeps for minutes; no real one is needed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.siege_clients import hostile_apps, percentile_s, time_calls
from benchmarks.rig.siege_soak import soak
from benchmarks.rig.siege_strangers import strangers

from tests.runtime.conftest import make_bundle
from tests.serve import stand_in
from tests.serve.process import ServerProcess

SLOWER, STOP_S, OWNER_CALLS, GROWTH = 2.0, 5.0, 100, 1.02
P99 = 99.0
HOSTILE = 8


def hostile(bundle: Path, folder: Path, calls: int) -> dict[str, Any]:
    """Seconds of an honest client's calls, alone and beside eight that send pictures of the stand-in; and those of the stop."""
    socket = folder / "s"
    with ServerProcess(bundle, "--socket", str(socket), program=stand_in.PROGRAM) as server:
        time_calls(socket, calls // 10)  # everything is loaded
        alone = time_calls(socket, calls)
        with hostile_apps(socket, HOSTILE) as apps:
            beside = time_calls(socket, calls)
            refused = apps.answers()
            begin = perf_counter()
            code, said = server.stop()
            stop_s = perf_counter() - begin
    p99 = {name: (percentile_s(alone[name], P99), percentile_s(beside[name], P99)) for name in alone}
    return {"p99_s": p99, "hostile_answers": refused, "stop_s": stop_s, "exit_code": code, "stderr": said}


def figures(report: dict[str, Any]) -> list[Figure]:
    """The bars of those parts that ran."""
    shown = []
    if "hostile" in report:
        facts = report["hostile"]
        for name, (alone_s, beside_s) in facts["p99_s"].items():
            shown.append(Figure(name=f"{name}: p99 beside 8 hostile clients / alone", value=beside_s / alone_s, bar=SLOWER, unit="x"))
        shown.append(Figure(name="SIGTERM beside them", value=facts["stop_s"], bar=STOP_S, unit="s"))
    if "strangers" in report:
        shown.append(
            Figure(name="owner's calls answered, 256 strangers", value=report["strangers"]["answered"], bar=OWNER_CALLS, least=True)
        )
    if "soak" in report:
        facts = report["soak"]
        shown.append(Figure(name=f"pictures wrong, of {facts['pictures']}", value=facts["wrong"], bar=0))
        shown.append(Figure(name="pictures lost", value=facts["lost"], bar=0))
        shown.append(Figure(name="memory, end / middle", value=facts["growth"], bar=GROWTH, unit="x"))
    return shown


def main() -> int:
    """Print the bars; 1 where one is missed."""
    parser = command_line(__doc__)
    parser.add_argument("--calls", type=int, default=200, help="of each kind by the honest client, alone and beside the others")
    parser.add_argument("--strangers-s", type=float, default=120.0, help="seconds with strangers on the port")
    parser.add_argument("--pictures", type=int, default=20_000, help="of the soak")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="q") as name:
        folder = Path(name)
        bundle = make_bundle(folder / "phone")
        if options.calls:
            report["hostile"] = hostile(bundle, folder, options.calls)
        if options.strangers_s:
            report["strangers"] = strangers(bundle, folder, options.strangers_s, OWNER_CALLS)
        if options.pictures:
            report["soak"] = soak(bundle, folder, options.pictures)
    shown = figures(report)
    print_figures(shown)
    print(json.dumps(report))
    write_report(options.json, report, shown)
    return 0 if all(figure.reached for figure in shown) else 1


if __name__ == "__main__":
    sys.exit(main())
