"""Bytes of what all adapters share, at W8A16 and W4A16, counted from the shapes of Stable Diffusion 1.5's networks.

    python -m benchmarks.four_bit_bytes [--correction-rank 8] [--json FILE]

Nothing is built: networks lie on torch's meta device. Weights are counted in the bits that a build gives them, with the correction and with
what 8 bits take for the most sensitive layers; scales and zero points as graphs hold them and again as the profile's text; all other
parameters as float32. Nodes of graphs, slots, tokenizer and stored calls are left out: a few megabytes, the same in both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from quad.build.four_bits.choose_layers import correction_budget, default_room, layer_costs
from quad.build.request import CORRECTION_RANK
from quad.core.slots import TEXT_ENCODER, UNET
from quad.core.tensor_names import weight_name
from quad.model.slots.attention import add_sites
from quad.model.slots.layers import layers_of, tables_of
from quad.quantize.correct.layer_choice import four_bit_paths
from quad.quantize.encodings.rules import rule_for

BAR = 0.56
BINARIES, RANK, RATIO = 10, 64, 12.0  # merged INT8 U-Nets, against adapters of that rank in int16 on all attention projections
TEN = f"ten INT8 U-Nets over one of 4 bits and ten adapters of rank {RANK}"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
WIDTHS = (128, 256, 512, 512)
GRAPH_BYTES = {8: 5, 4: 4.5}  # of a channel's scale and zero point
TEXT_BYTES = 23  # of the same as text: a float32 in decimals, and a number of one digit


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
    eight = {name: eight_bit_bytes(name, network) for name, network in parts.items()}
    damages = {(name, path): 0.0 for name, network in parts.items() for path in four_bit_paths(name, network)}
    costs, fixed = layer_costs(parts, damages, options.correction_rank)
    rows: dict[str, dict[str, float]] = {}
    for name, network in parts.items():
        mine = [cost for cost in costs if cost.key[0] == name]
        rest, _ = _rest(network, GRAPH_BYTES[4])
        four = layer_costs({name: network}, damages, options.correction_rank)[1] + sum(cost.four_bytes for cost in mine)
        rows[name] = {"w8a16": eight[name], "w4a16, least": four + rest}
    room, correction, total = default_room(costs), correction_budget(costs), sum(eight.values())
    shared = sum(row["w4a16, least"] for row in rows.values()) + room + correction
    for name, row in rows.items():
        print(f"{name:14}" + ", ".join(f"{key} {value / 1e6:.1f} MB" for key, value in row.items()))
    print(
        f"together {total / 1e6:.1f} MB at w8a16, {shared / 1e6:.1f} MB at w4a16, of which {room / 1e6:.1f} MB for layers that keep 8 bits "
        f"and {correction / 1e6:.1f} MB for the correction"
    )
    one_for_all = rows[UNET]["w4a16, least"] + room + correction + BINARIES * adapter_bytes(parts[UNET])
    figures = [
        Figure(name="shared bytes, w4a16 over w8a16", value=shared / total, bar=BAR, unit="x"),
        Figure(name=TEN, value=BINARIES * eight[UNET] / one_for_all, bar=RATIO, unit="x", least=True),
    ]
    print_figures(figures)
    together = {"w8a16": total, "w4a16": shared, "room": room, "correction": correction, "fixed": fixed}
    write_report(options.json, {"components": rows, **together}, figures)
    return 0


def adapter_bytes(unet: nn.Module) -> int:
    """Of A and B in int16."""
    layers = [layer for path, layer in layers_of(unet).items() if path.endswith(PROJECTIONS)]
    return sum(RANK * (layer.weight.shape[0] + layer.weight.shape[1]) * 2 for layer in layers)


def eight_bit_bytes(component: str, network: nn.Module) -> float:
    """Of a component at W8A16."""
    weights: Mapping[str, nn.Module] = {**layers_of(network), **tables_of(network)}
    rest, _ = _rest(network, GRAPH_BYTES[8])
    return rest + sum(_bits(component, path) / 8 * _size(module) for path, module in weights.items())


def _rest(network: nn.Module, per_channel: float) -> tuple[float, int]:
    """Bytes of scales, zero points and parameters that are no weights; and the number of channels."""
    layers, tables = layers_of(network), tables_of(network)
    channels = sum(len(layer.weight) for layer in layers.values())
    weights = sum(_size(module) for module in (*layers.values(), *tables.values()))
    others = sum(parameter.numel() for parameter in network.parameters()) - weights
    return 4.0 * others + channels * (per_channel + TEXT_BYTES), channels


def _bits(component: str, path: str) -> int:
    rule = rule_for(component, weight_name(path))
    return 32 if rule is None else rule.bits


def _size(module: nn.Module) -> int:
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.numel()


if __name__ == "__main__":
    sys.exit(main())
