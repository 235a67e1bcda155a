"""Bytes of what all adapters share, at W8A16 and W4A16, counted from the shapes of Stable Diffusion 1.5's networks.

    python -m benchmarks.four_bit_bytes [--correction-rank 8] [--json FILE]

Nothing is built, see `rig.counted_bytes`. At 4 bits with the correction, and with what 8 bits take for the most sensitive layers. Token
tables have 8 bits in both; the bar is of W8A16 with tables of 16.
"""

from __future__ import annotations

import sys

import torch
from benchmarks.rig.counted_bytes import adapter_bytes, eight_bit_bytes, four_bit_bytes
from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from quad.build.request import CORRECTION_RANK
from quad.core.slots import TEXT_ENCODER, UNET
from quad.model.slots.attention import add_sites
from quad.model.slots.layers import tables_of

BAR = 0.56
BINARIES, RANK, RATIO = 10, 64, 12.0  # merged INT8 U-Nets, against adapters of that rank in int16 on all attention projections
TEN = f"ten INT8 U-Nets over one of 4 bits and ten adapters of rank {RANK}"
WIDTHS = (128, 256, 512, 512)


def networks() -> dict[str, nn.Module]:
    """The four networks without memory, with Sites."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=WIDTHS, layers_per_block=2, norm_num_groups=32, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        parts: dict[str, nn.Module] = {
            UNET: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            TEXT_ENCODER: CLIPTextModel(text),
            "vae_encoder": nn.ModuleDict({"encoder": vae.encoder, "quant_conv": vae.quant_conv}),
            "vae_decoder": nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}),
        }
    for part in parts.values():
        add_sites(part)
    return parts


def main() -> int:
    """Count both and print their ratio."""
    parser = command_line(__doc__)
    parser.add_argument("--correction-rank", type=int, default=CORRECTION_RANK, help="rank of the correction, 0 for none")
    options = parser.parse_args()
    parts = networks()
    eight, four = {name: eight_bit_bytes(name, network) for name, network in parts.items()}, four_bit_bytes(parts, options.correction_rank)
    total, shared = sum(eight.values()), four.total
    rows = {name: {"w8a16": eight[name], "w4a16, least": four.least[name]} for name in parts}
    for name, row in rows.items():
        print(f"{name:14}" + ", ".join(f"{key} {value / 1e6:.1f} MB" for key, value in row.items()))
    print(f"together {total / 1e6:.1f} MB at w8a16; at w4a16 {shared / 1e6:.1f} MB, {shared / total:.3f} of it,", end=" ")
    print(f"of which {four.room / 1e6:.1f} MB for layers that keep 8 bits and the correction, this {four.correction / 1e6:.1f} MB at most")
    one_for_all = four.least[UNET] + four.room + BINARIES * adapter_bytes(parts[UNET], RANK)
    fine = total + sum(table.weight.numel() for network in parts.values() for table in tables_of(network).values())
    figures = [
        Figure(name="shared bytes, w4a16 over w8a16 with token tables of 16 bits", value=shared / fine, bar=BAR, unit="x"),
        Figure(name=TEN, value=BINARIES * eight[UNET] / one_for_all, bar=RATIO, unit="x", least=True),
    ]
    print_figures(figures)
    together = {"w8a16": total, "w4a16": shared, "room": four.room, "correction": four.correction}
    write_report(options.json, {"components": rows, **together}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
