"""A LiteRT bundle's U-Net for a Qualcomm chip, its binary run in emulation against LiteRT's CPU: every stored call with every adapter.

    python -m benchmarks.litert_htp out/litert [--soc SM8750] [--json FILE]

The bundle is one of `quad build toyland --target litert --soc SM8750 -o out/litert`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from benchmarks.litert_intel import stored_feeds
from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from rich.console import Console
from rich.progress import track

from quad.compile.artifact import TFLITE_FILE
from quad.compile.litert.aot.chips import chips_named
from quad.compile.litert.aot.observed import ObservedModel
from quad.compile.litert.aot.qualcomm import emulated_db
from quad.core.ports import PORTS_FILE, Ports
from quad.core.slots import UNET
from quad.core.storage.files import scratch_directory
from quad.runtime.bundle import open_bundle

BAR_DB = 55.0


def main() -> None:
    """Run all calls and print the worst and the best of each adapter."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path, help="built with --target litert --soc CHIP")
    parser.add_argument("--soc", default="SM8750", help="the chip")
    options = parser.parse_args()
    bundle, (chip,) = open_bundle(options.bundle), chips_named([options.soc])
    folder = options.bundle / UNET
    ports = msgspec.json.decode((folder / PORTS_FILE).read_bytes(), type=Ports)
    observed = ObservedModel((folder / TFLITE_FILE).read_bytes(), UNET)
    feeds = stored_feeds(bundle, ports)
    sqnr_db: dict[str, list[float]] = {}
    with scratch_directory() as scratch:
        for name, calls in track(feeds.items(), "adapters", console=Console(stderr=True)):
            compiled = folder / f"{chip.name}.tflite"
            sqnr_db[name] = [emulated_db(compiled, chip, observed, feed, observed.outputs, scratch)[0] for feed in calls]
    figures = [
        Figure(name=f"{name}, worst of {len(each)}", value=min(each), bar=BAR_DB, unit="dB", least=True) for name, each in sqnr_db.items()
    ]
    print_figures(figures)
    print(f"best {max(max(each) for each in sqnr_db.values()):.1f} dB")
    write_report(options.json, {"chip": chip.name, "sqnr_db": sqnr_db}, figures)


if __name__ == "__main__":
    main()
