"""A LiteRT bundle's U-Net compiled ahead of time for another vendor's chip and run: Intel's plugin, its CPU device.

    quad build toyland --target litert -o out/litert
    python -m benchmarks.litert_intel out/litert [--env DIR] [--component unet] [--json FILE]

The plugin in ai-edge-litert 2.3.0 is linked against OpenVINO 2026.3.1 and no other version, so the pair is installed into an environment of
its own (`--env`, used again where it is there). The compiled file is one operator; it runs through LiteRT's dispatch library, each adapter
twice with the others between.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from numpy.typing import NDArray

from quad.core.ports import PORTS_FILE, Ports
from quad.core.slots import UNET
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.golden_outputs import read_probes, unet_buffers

PAIR = ("ai-edge-litert==2.3.0", "openvino==2026.3.1")
WORKER = Path(__file__).parent / "rig" / "litert_dispatch.py"
FLOOR_DB = 30.0  # floats are bf16 inside
_CENSUS = re.compile(r"selected (\d+) ops, from a total of (\d+) ops\. resulted in (\d+) partitions")


def environment(folder: Path) -> tuple[Path, Path]:
    """An environment with the pair.

    Returns:
        Its Python, and its folder of packages.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PAIR], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    return python, packages


def compiled(model: Path, output: Path, packages: Path) -> dict[str, int]:
    """Compile a file for Intel's CPU device: how many operators the plugin took, of how many, in how many pieces."""
    package = packages / "ai_edge_litert"
    command = [
        str(package / "tools" / "apply_plugin_main"), "--cmd=apply", f"--model={model}", f"--o={output}",
        "--soc_manufacturer=IntelOpenVINO", "--soc_model=PTL", f"--libs={package / 'vendors' / 'intel_openvino' / 'compiler'}",
        "--intel_openvino_graph_backends=cpu",
    ]  # fmt: skip
    ended = subprocess.run(command, env=_with_openvino(packages), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    selected, ops, partitions = map(int, _CENSUS.findall(ended.stdout)[-1])
    return {"selected": selected, "ops": ops, "partitions": partitions}


def _with_openvino(packages: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(packages / "openvino" / "libs")}


def stored_feeds(bundle: Bundle, ports: Ports) -> dict[str, list[dict[str, NDArray[Any]]]]:
    """Adapter -> every input of the U-Net's file for each stored call, as integers; the base is the adapter of zeros."""
    store = AdapterStore(bundle)
    calls = [{key: ports.inputs[key].encode(array) for key, array in call.items()} for call in read_probes(bundle)]
    slots = {name: unet_buffers(bundle, store.mix([name], [1.0])[0]) for name in store.names}
    sources = {"base": unet_buffers(bundle, store.mix([], [])[0]), **slots}
    return {name: [{**call, **buffers} for call in calls] for name, buffers in sources.items()}


def one_each(feeds: dict[str, list[dict[str, NDArray[Any]]]]) -> dict[str, dict[str, NDArray[Any]]]:
    """Of every adapter one call; calls go round."""
    return {name: calls[place % len(calls)] for place, (name, calls) in enumerate(feeds.items())}


def main() -> None:
    """Compile, run, compare."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path, help="built with --target litert")
    parser.add_argument("--env", type=Path, default=Path("out/litert-intel"), help="the environment with the pair")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    folder = (options.bundle / UNET).resolve()
    ports = msgspec.json.decode((folder / PORTS_FILE).read_bytes(), type=Ports)
    python, packages = environment(options.env.resolve())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        np.savez(scratch / "feeds.npz", **{f"{source}/{key}": array for source, feed in one_each(stored_feeds(bundle, ports)).items()
                                           for key, array in feed.items()})  # fmt: skip
        model, output = folder / "model.tflite", scratch / "compiled.tflite"
        census = compiled(model, output, packages)
        command = [str(python), str(WORKER), str(model), str(output), str(scratch / "feeds.npz"), str(scratch / "result.json")]
        subprocess.run(command, env=_with_openvino(packages), stdout=subprocess.DEVNULL, check=True)
        result = json.loads((scratch / "result.json").read_text())
    figures = [
        Figure(name="operators that the plugin takes", value=census["selected"], bar=census["ops"], least=True),
        Figure(name="partitions", value=census["partitions"], bar=1),
        Figure(name="adapters that give the same again, to the bit", value=sum(result["again_equal"].values()),
               bar=len(result["again_equal"]), least=True),
        *(Figure(name=f"against LiteRT's CPU, {source}", value=db, bar=FLOOR_DB, unit="dB", least=True)
          for source, db in result["sqnr_db"].items()),
    ]  # fmt: skip
    print_figures(figures)
    write_report(options.json, {"pair": PAIR, "census": census, **result}, figures)


if __name__ == "__main__":
    main()
