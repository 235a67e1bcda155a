"""The time of a tiny decoder beside that of the own one, at Stable Diffusion 1.5's shape with random weights.

    python -m benchmarks.tiny_decoder [--latent 32|64] [--engine ort] [--threads 2] [--turns 7] [--json FILE]

Float graphs, which is what a CPU computes a decoder in at any precision. The two take turns; times are processor time, the ratio is the
median over turns. What a tiny decoder loses is measured by `benchmarks.shortcuts` on a bundle of the reference model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
from benchmarks.rig.report import command_line, write_report
from diffusers import AutoencoderKL
from torch import nn

from quad.compile.artifact import OnnxArtifact
from quad.compile.export import GraphSpec, export_graph
from quad.core.extra_graphs import TINY_DECODER
from quad.core.manifest import LatentSpec
from quad.model.base.modules import VaeDecoderModule
from quad.model.tiny_decoder import WIDTH, TinyDecoder, multiplications
from quad.runtime.engines.engine import Session, open_engine

OWN, FACTOR = "vae_decoder", 8
LATENT = LatentSpec(channels=4, factor=FACTOR, scale=(0.18215,) * 4, shift=(0.0,) * 4)


def networks() -> dict[str, nn.Module]:
    """The two decoders, weights drawn."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return {OWN: VaeDecoderModule(vae, LATENT).eval(), TINY_DECODER: TinyDecoder(4, FACTOR.bit_length() - 1, WIDTH).eval()}


def main() -> int:
    """Time both and print their ratio."""
    options = _options()
    latent = torch.randn(1, 4, options.latent, options.latent)
    sides, figures = networks(), dict[str, Any]()
    with TemporaryDirectory() as scratch:
        sessions = {}
        for name, network in sides.items():
            model = export_graph(network, GraphSpec(component=name, inputs={"latent": latent}, output="image"))
            file = OnnxArtifact(model=model, placement={}).write(Path(scratch) / name).file
            sessions[name] = open_engine(options.engine, (), "float").load(Path(scratch) / file, options.threads)
            figures[name] = {
                "multiplications": multiplications(network, latent[:, :, :8, :8]) * (options.latent // 8) ** 2,
                "weights": sum(parameter.numel() for parameter in network.parameters()),
            }
        inputs = {"latent": latent.numpy()}
        turns = [{name: _seconds(session, inputs) for name, session in sessions.items()} for _ in range(options.turns + 1)][1:]
    for name in sides:
        figures[name]["seconds"] = statistics.median(turn[name] for turn in turns)
    figures["tiny_over_own"] = statistics.median(turn[TINY_DECODER] / turn[OWN] for turn in turns)
    print(figures)
    write_report(options.json, figures)
    return 0


def _seconds(session: Session, inputs: dict[str, np.ndarray[Any, Any]]) -> float:
    start = process_time()
    session.run(inputs)
    return process_time() - start


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--latent", type=int, default=32, help="latent pixels each way, a multiple of 8")
    parser.add_argument("--engine", default="ort", help="what executes the graphs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--turns", type=int, default=7, help="calls of each")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
