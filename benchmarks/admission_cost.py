"""The cost of an admission on a device: seconds, memory beside a resident pipeline, and what the process loads.

    python -m benchmarks.admission_cost BUNDLE LORA [--min-energy E] [--json FILE]

`quad adapt` without a model runs in a process of its own while this one holds the pipeline, as a server does. Its memory is looked at a
hundred times a second: what is its own (RssAnon; the graph's files, mapped, are the pipeline's too) and all of it. Control: the pipeline.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report

from quad.core.memory import peak_ram_bytes
from quad.runtime.pipeline import QuadPipeline

MB, LOOK_S = 1e6, 0.01
# The verb itself, and then what it has loaded.
ADAPT = """
import contextlib, json, sys
from quad.cli.main import app
with contextlib.suppress(SystemExit):
    app(sys.argv[1:])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
NOT_ON_A_DEVICE = ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript")


def main() -> int:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--min-energy", default="0.9")
    options = parser.parse_args()
    pipe = QuadPipeline.from_pretrained(options.bundle, threads=1)
    pipe("a house", task="text-to-image", num_inference_steps=2)
    report = {"pipeline": {"peak_bytes": peak_ram_bytes(), "anonymous_bytes": _status("self")[1]}, "admission": _admission(options)}
    figures = _figures(report)
    print_figures(figures)
    write_report(options.json, report, figures)
    return 0


def _admission(options: Any) -> dict[str, Any]:
    """One admission: seconds, peaks, its own JSON, and the packages it loaded."""
    with TemporaryDirectory() as folder:
        words = ["adapt", str(options.bundle), f"later={options.lora}", "-o", f"{folder}/later.qpack", "--min-energy", options.min_energy]
        begin, resident, own = time.perf_counter(), 0, 0
        with subprocess.Popen([sys.executable, "-c", ADAPT, *words, "--json"], stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                resident, own = (max(pair) for pair in zip((resident, own), _status(str(process.pid)), strict=True))
                time.sleep(LOOK_S)
            seconds = time.perf_counter() - begin
            spent = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit("admission_cost: it was refused, see above")
    answer, loaded = json.loads("\n".join(lines[:-1])), json.loads(lines[-1])
    costs = {"wall_seconds": seconds, "cpu_seconds": spent.ru_utime + spent.ru_stime, "peak_bytes": resident, "own_bytes": own}
    return {**costs, "loaded": [name for name in loaded if name in NOT_ON_A_DEVICE], **answer}


def _status(process: str) -> tuple[int, int]:
    """Resident bytes of a process, and those of them that are no file's; zeros where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if value.endswith("kB")}
    return sizes.get("VmRSS", 0), sizes.get("RssAnon", 0)


def _figures(report: dict[str, Any]) -> list[Figure]:
    admission = report["admission"]
    return [
        Figure(name="admission", value=admission["wall_seconds"], bar=60.0, unit="s"),
        Figure(name="of it on the processor, one thread", value=admission["cpu_seconds"], bar=60.0, unit="s"),
        Figure(name="memory of its own, beside the pipeline", value=admission["own_bytes"] / MB, bar=1000.0, unit="MB"),
        Figure(name="its process, with the files it shares", value=admission["peak_bytes"] / MB, bar=2000.0, unit="MB"),
        Figure(name="packages of the build that it loads", value=len(admission["loaded"]), bar=0),
    ]


if __name__ == "__main__":
    sys.exit(main())
