"""What memory each stage of a build takes by the parameter, on models of SDXL's structure, and a picture from it.

    python -m benchmarks.sdxl_memory [--widths 0.3,0.6] [--depth 0.1] [--size 512] [--calibration-size N] [--precision w8a16]
        [--lora-bits 16] [--steps 2] [--part build|steps|bytes] [--cache out/sdxl_memory] [--json FILE]

Weights are random. Each width is built in a process of its own, which says the largest memory of every stage beyond what it held when the
model was not open yet. Two widths make a line for each stage, memory by parameters, which says what the real shape takes; `--widths 1.0
--depth 1.0` measures it. `--part steps` takes a minute: the steps that hold weights, without calls, beside the same in float32. `--part
bytes` builds nothing: it counts what the full shape's bundle takes, at W8A16 and at W4A16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rig.counted_bytes import adapter_bytes, eight_bit_bytes, four_bit_bytes
from benchmarks.rig.figures import Figure
from benchmarks.rig.held_steps import held_steps
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.xl_world import Shape, counted_networks, parameters, write_xl_adapters, write_xl_pipeline

from quad.build.request import CORRECTION_RANK
from quad.core.memory import peak_ram_bytes, reset_peak
from quad.core.slots import UNET
from quad.runtime.bundle import COMPONENTS, open_bundle

GB, FULL = 1e9, 1.0
PICTURE_PX = 256
ADAPTER, RANK, SEPARATE = "portrait", 32, 10  # one of attention alone, its rank; how many binaries are compared
TEN = f"ten separate binaries over one bundle with ten adapters of rank {RANK}"
BARS = {"build": 18.0, "run": 1.3, "shared": 0.52, "separate": 8.5}


def main() -> int:
    """Build at each width, run, and print memory by stage."""
    options = _options()
    if options.part == "steps":
        return _held(options)
    if options.part == "bytes":
        return _counted(options)
    builds = {share: _built(share, options) for share in options.widths}
    report = {"builds": builds, "full": _full_shape(builds, options.depth)}
    figures = _figures(builds, report["full"])
    _print(builds, report["full"])
    print_figures(figures)
    write_report(options.json, report, figures)
    return 0


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument(
        "--widths", type=lambda text: [float(part) for part in text.split(",")], default=[0.3, 0.6], help="shares of SDXL's"
    )
    parser.add_argument("--part", choices=("build", "steps", "bytes"), default="build")
    parser.add_argument("--depth", type=float, default=0.1, help="share of SDXL's")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--calibration-size", type=int, help="of the pictures that ranges are measured on, default as --size")
    parser.add_argument("--precision", default="w8a16")
    parser.add_argument("--lora-bits", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="of each calibration sample")
    parser.add_argument(
        "--cache", type=Path, default=Path("out/sdxl_memory"), help="where models, LoRAs and bundles are kept, 12 GB at 1.0"
    )
    return parser.parse_args()


def _model(share: float, options: argparse.Namespace) -> tuple[Shape, Path]:
    """A shape, and the folder with its model."""
    shape, folder = Shape(share, options.depth), options.cache / f"{share:g}-{options.depth:g}"
    if not (folder / "model" / "model_index.json").is_file():
        write_xl_pipeline(folder / "model", shape)
    return shape, folder


def _held(options: argparse.Namespace) -> int:
    """Memory of the steps that hold weights, at each width, each way in a process of its own."""
    report: dict[str, Any] = {}
    for share in options.widths:
        _, folder = _model(share, options)
        measured = []
        for compact in (True, False):
            with get_context("spawn").Pool(1) as pool:
                measured.append(pool.apply(held_steps, (folder / "model", folder), {"compact": compact}))
        ours, control = measured
        report[f"{share:g}"] = {"compact": ours, "float32": control}
        print(f"\nwidth {share:g}: {ours['parameters'] / GB:.3f} G parameters; bytes a parameter, and with weights in float32")
        for step, peak in ours["peaks"].items():
            print(f"  {step:10} {peak / ours['parameters']:6.2f} {control['peaks'][step] / ours['parameters']:6.2f}")
    write_report(options.json, report)
    return 0


def _counted(options: argparse.Namespace) -> int:
    """Bytes of the full shape's bundle, from its networks on the meta device."""
    shape = Shape(FULL, FULL)
    parts = counted_networks(shape)
    each = {name: eight_bit_bytes(name, network) for name, network in parts.items()}
    sizes = Sizes(shared=sum(each.values()), adapter=adapter_bytes(parts[UNET], RANK, options.lora_bits), parameters=parameters(shape))
    four = four_bit_bytes(parts, CORRECTION_RANK).total
    print(", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in each.items()) + f"; an adapter {sizes.adapter / 1e6:.1f} MB")
    print(f"together {sizes.shared / 1e6:.1f} MB; at w4a16 {four / 1e6:.1f} MB, {four / sizes.shared:.3f} of it")
    print_figures(sizes.figures())
    write_report(options.json, {"components": each, "adapter": sizes.adapter, "w4a16": four}, sizes.figures())
    return 0


@dataclass(frozen=True)
class Sizes:
    """Bytes of what all adapters share, and of one adapter; numbers of the model."""

    shared: float
    adapter: int
    parameters: int

    def figures(self) -> list[Figure]:
        """The two bars on bytes."""
        # A separate binary, with its LoRA merged in at the same precision, is as large as what all share.
        ten = SEPARATE * self.shared / (self.shared + SEPARATE * self.adapter)
        return [
            Figure(name="shared part over the fp16 files", value=self.shared / (2 * self.parameters), bar=BARS["shared"], unit="x"),
            Figure(name=TEN, value=ten, bar=BARS["separate"], unit="x", least=True),
        ]


def _built(share: float, options: argparse.Namespace) -> dict[str, Any]:
    """One width: its parameters, the stages' peaks, and what a picture takes."""
    shape, folder = _model(share, options)
    adapters = write_xl_adapters(folder / "loras", shape)
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    arguments = (sender, folder, adapters, options)
    process = get_context("spawn").Process(target=_build, args=arguments)
    process.start()
    sender.close()
    try:
        measured: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit("sdxl_memory: the build failed, see above") from None
    process.join()
    return {"parameters": parameters(shape), **measured, "run": _picture(folder / "bundle", next(iter(adapters)))}


def _build(sender: Any, folder: Path, adapters: dict[str, Path], options: argparse.Namespace) -> None:
    """In a process of its own: `quad build`, with the peak of each stage."""
    import quad.build.build
    from quad.build.request import BuildRequest
    from quad.quantize.observe.calibrate import CalibrationSample

    picture = np.random.default_rng(0).integers(0, 255, (PICTURE_PX, PICTURE_PX, 3)).astype(np.uint8)
    samples = [CalibrationSample(task="transform", prompt="a cat", image=picture, steps=options.steps)]
    samples += [CalibrationSample(task="text-to-image", prompt="a cat", adapter=name, steps=options.steps) for name in (None, *adapters)]
    peaks: dict[str, int] = {}
    stage = "start"

    def progress(text: str, share: float) -> None:
        nonlocal stage
        peaks[stage] = max(peaks.get(stage, 0), peak_ram_bytes())
        reset_peak()
        stage = text.split()[0]
        print(f"sdxl_memory: {text}, {peak_ram_bytes() / GB:.2f} GB", file=sys.stderr, flush=True)

    reset_peak()
    base = peak_ram_bytes()
    request = BuildRequest(
        folder / "model", adapters, folder / "bundle", samples=samples, precision=options.precision, size=options.size,
        calibration_size=options.calibration_size, lora_bits=options.lora_bits,
    )  # fmt: skip
    built = quad.build.build.build(request, progress)
    rom = built.to_json()["rom_bytes"]
    sender.send({"base_bytes": base, "peaks": peaks, "seconds": built.seconds, "stages": dict(built.stages), "rom_bytes": rom})


def _picture(bundle: Path, adapter: str) -> dict[str, Any]:
    """Peak memory of `quad run --memory minimal`, and the bytes of the files that it reads."""
    command = [sys.executable, "-m", "quad", "run", str(bundle), "--task", "text-to-image", "--adapter", adapter, "--prompt", "a cat",
               "--steps", "2", "--seed", "0", "--memory", "minimal", "-o", str(bundle.parent / "cat.png"), "--json"]  # fmt: skip
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    manifest = open_bundle(bundle, verify=False).manifest
    graphs = [name for part in COMPONENTS for name in (manifest.components[part].file, *manifest.components[part].data_files)]
    graphs += [name for name in manifest.files if name.startswith(f"adapters/{adapter}/")]
    return {"peak_bytes": answer["peak_ram_bytes"], "resident_bytes": sum(manifest.files[name].size_bytes for name in graphs)}


def _full_shape(builds: dict[float, dict[str, Any]], depth: float) -> dict[str, float]:
    """Stage -> peak of the full shape, bytes: on the line through the two widest builds; measured where it is among them."""
    if FULL in builds and depth == FULL:
        return {stage: float(peak) for stage, peak in builds[FULL]["peaks"].items()}
    if len(builds) < len(("narrow", "wide")):
        return {}
    narrow, wide = (builds[share] for share in sorted(builds)[-2:])
    more, full = wide["parameters"] - narrow["parameters"], parameters(Shape(FULL, FULL))
    slopes = {stage: (peak - narrow["peaks"][stage]) / more for stage, peak in wide["peaks"].items() if stage in narrow["peaks"]}
    return {stage: wide["peaks"][stage] + slope * (full - wide["parameters"]) for stage, slope in slopes.items()}


def _figures(builds: dict[float, dict[str, Any]], full: dict[str, float]) -> list[Figure]:
    widest = builds[max(builds)]
    run, rom = widest["run"], widest["rom_bytes"]
    figures = (
        [Figure(name="peak memory of the build, full shape", value=max(full.values()) / GB, bar=BARS["build"], unit="GB")] if full else []
    )
    return [
        *figures,
        Figure(name="peak of quad run over the files it reads", value=run["peak_bytes"] / run["resident_bytes"], bar=BARS["run"], unit="x"),
        *Sizes(shared=rom["shared"], adapter=rom["adapters"][ADAPTER], parameters=widest["parameters"]).figures(),
    ]


def _print(builds: dict[float, dict[str, Any]], full: dict[str, float]) -> None:
    for share, built in builds.items():
        base = built["base_bytes"]
        print(f"\nwidth {share:g}: {built['parameters'] / GB:.3f} G parameters, {built['seconds']:.0f} s, {base / GB:.2f} GB before")
        for stage, peak in built["peaks"].items():
            beyond = (peak - base) / built["parameters"]
            at_full = f", full shape {full[stage] / GB:5.1f} GB" if stage in full else ""
            print(f"  {stage:10} {peak / GB:6.2f} GB, {beyond:5.1f} bytes a parameter{at_full}")


if __name__ == "__main__":
    sys.exit(main())
