"""Where a step goes in ONNX Runtime: its time by operator, and the rate of every integer product by shape, beside the int8 peak.

    python -m benchmarks.operators [--widths 320,640] [--latent 64] [--threads 1] [--runs 3] [--cache out/operators] [--json FILE]

The network has the first widths of Stable Diffusion 1.5's U-Net and random weights, one layer a block: at 64 latents 2 GB of memory and
minutes, where the whole takes 7 GB. With one thread kernels do not wait for one another.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from benchmarks.rig.graphs import SHARED, TARGETS, Shape, build_shared, graph_file
from benchmarks.rig.peak import int8_peak
from benchmarks.rig.report import command_line, write_report
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray

from quad.runtime.engines.ort import session_options

KERNEL, PRECISION, ENGINE = "MatMulIntegerToFloat", "mixed:80", "ort"
_TYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(int16)": np.int16, "tensor(int8)": np.int8}
_LARGEST = 300  # integer that a made-up adapter has
Product = tuple[int, int, int]  # rows, depth, columns


def first_levels(widths: Sequence[int]) -> UNet2DConditionModel:
    """A U-Net with attention at its first width alone, one layer a block."""
    torch.manual_seed(0)
    below = len(widths) - 1
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=tuple(widths),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", *["DownBlock2D"] * below),
        up_block_types=(*["UpBlock2D"] * below, "CrossAttnUpBlock2D"),
    )
    return unet.eval().requires_grad_(False)


def kernel_events(file: Path, threads: int, runs: int) -> list[dict[str, Any]]:
    """The profiler's events of all kernels in so many runs, the first run left out."""
    options = session_options(PRECISION, threads)
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = {node.name: _numbers(node.shape, _TYPES[node.type]) for node in session.get_inputs()}
        for _ in range(1 + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("kernel_time")]
    return kernels[len(kernels) // (1 + runs) :]


def _numbers(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    draw = np.random.default_rng(0)
    return draw.standard_normal(shape, dtype) if dtype is np.float32 else draw.integers(-_LARGEST, _LARGEST, shape).astype(dtype)


def by_operator(events: Sequence[Mapping[str, Any]], runs: int) -> dict[str, float]:
    """Operator -> ms a run, the largest first."""
    times: Counter[str] = Counter()
    for event in events:
        times[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
    return dict(times.most_common())


def by_product(events: Sequence[Mapping[str, Any]], runs: int) -> dict[Product, dict[str, float]]:
    """Shape of an integer product -> calls and ms a run, and operations a second in 10^9, the longest first."""
    times: Counter[Product] = Counter()
    calls: Counter[Product] = Counter()
    for event in (event for event in events if event["args"]["op_name"] == KERNEL):
        left, output = (next(iter(event["args"][f"{side}_type_shape"][0].values())) for side in ("input", "output"))
        product = (math.prod(output[:-1]), left[-1], output[-1])
        times[product] += event["dur"] / 1e3
        calls[product] += 1
    return {
        product: {"calls": calls[product] / runs, "ms": ms / runs, "gops": 2e-6 * math.prod(product) * calls[product] / ms}
        for product, ms in times.most_common()
    }


def main() -> int:
    """Build, profile and print."""
    options = _options()
    shape = Shape(latent=options.latent, rank=16, precision=PRECISION, lora_bits=16)
    cache = options.cache / f"{options.latent}-{'-'.join(map(str, options.widths))}"
    file = graph_file(cache, TARGETS[ENGINE], SHARED)
    if not file.is_file():
        build_shared(cache, shape, (ENGINE,), lambda stage: print(f"operators: {stage}", file=sys.stderr), first_levels(options.widths))
    events = kernel_events(file, options.threads, options.runs)
    peak = int8_peak(ENGINE, options.threads) / 1e9
    operators, products = by_operator(events, options.runs), by_product(events, options.runs)
    total, gop = sum(operators.values()), sum(row["gops"] * row["ms"] / 1e3 for row in products.values())
    for name, ms in operators.items():
        print(f"{name:24} {ms:8.1f} ms {ms / total:6.1%}")
    for product, row in products.items():
        print(f"{product!s:24} x {row['calls']:4.0f} {row['ms']:8.1f} ms {row['gops']:6.0f} GOP/s {row['gops'] / peak:5.2f} of the peak")
    print(f"whole step: {total:.0f} ms, {gop:.0f} GOP in integers, {gop / total * 1e3 / peak:.2f} of the peak of {peak:.0f} GOP/s")
    shapes = {" x ".join(map(str, product)): row for product, row in products.items()}
    write_report(options.json, {"operators": operators, "products": shapes, "peak_gops": peak}, [])
    return 0


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--widths", type=lambda text: [int(width) for width in text.split(",")], default=[320, 640], help="of the levels")
    parser.add_argument("--latent", type=int, default=64, help="side of the latent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("out/operators"), help="where the graph is kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
