"""LoRA files that are whole, and mean nothing: wrong numbers, keys, shapes and kinds, or another model's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quad.core.errors import InputError, QuadError, UnsupportedError
from tests.hostile.lora_bytes import PAIR, A, B, Q
from tests.hostile.raw import entry, headed, of_bytes, of_tensors, ones
from tests.hostile.refusal import Case

CONV = "down_blocks.0.resnets.0.conv1"
FLAT = "lora_unet_" + Q.replace(".", "_")
FLAT_CONV = "lora_unet_" + CONV.replace(".", "_")
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
KOHYA = {f"{FLAT}.lora_down.weight": ones(4, 32), f"{FLAT}.lora_up.weight": ones(32, 4)}
_ALPHA = f"{FLAT}.alpha"
_NAN, _INF = torch.tensor(torch.nan), torch.tensor(torch.inf)
_Cases = Mapping[str, tuple[dict[str, Tensor], str]]

_NUMBERS: _Cases = {
    "NaN in A": ({**PAIR, A: ones(4, 32).fill_diagonal_(torch.nan)}, "finite numbers, found NaN or Inf"),
    "NaN in B": ({**PAIR, B: ones(32, 4).fill_diagonal_(torch.nan)}, "finite numbers, found NaN or Inf"),
    "infinity in A": ({**PAIR, A: ones(4, 32).fill_diagonal_(torch.inf)}, "finite numbers, found NaN or Inf"),
    "minus infinity in B": ({**PAIR, B: ones(32, 4).fill_diagonal_(-torch.inf)}, "finite numbers, found NaN or Inf"),
    "float64 beyond float32": ({**PAIR, A: ones(4, 32).double() * 1e300}, "finite numbers, found NaN or Inf"),
    "float8 NaN": ({**PAIR, A: (ones(4, 32) * torch.nan).to(torch.float8_e4m3fn)}, "finite numbers, found NaN or Inf"),
    "alpha of NaN": ({**KOHYA, _ALPHA: _NAN}, "expected a finite alpha, found nan"),
    "alpha of infinity": ({**KOHYA, _ALPHA: _INF}, "expected a finite alpha, found inf"),
    "alpha beyond all": ({**KOHYA, _ALPHA: torch.tensor(1e30)}, "expected a finite alpha"),
    "alpha of two numbers": ({**KOHYA, _ALPHA: ones(2)}, "expected one number, found (2,)"),
    "alpha of no number": ({**KOHYA, _ALPHA: ones(0)}, "expected one number, found (0,)"),
    "a product that overflows": (
        {**KOHYA, f"{FLAT}.lora_up.weight": ones(32, 4) * 1e38, _ALPHA: torch.tensor(1e9)},
        "NaN or Inf in the product",
    ),
    "A below one rank": ({**PAIR, A: ones(0, 32), B: ones(32, 0)}, "expected rank >= 1, found rank 0"),
    "A of a number": ({**PAIR, A: torch.tensor(1.0)}, "expected (r, 32), found ()"),
    "A of a row": ({**PAIR, A: ones(32)}, "expected (r, 32), found (32,)"),
    "A turned round": ({**PAIR, A: ones(32, 4)}, "expected (r, 32), found (32, 4)"),
    "B of another rank": ({**PAIR, B: ones(32, 5)}, "expected (32, 4), found (32, 5)"),
    "B of another width": ({**PAIR, B: ones(31, 4)}, "expected (32, 4), found (31, 4)"),
    "A of five axes": ({**PAIR, A: ones(4, 32, 1, 1, 2)}, "expected (r, 32), found (4, 32, 1, 1, 2)"),
    "a kernel of another size": (
        {f"unet.{CONV}.lora_A.weight": ones(4, 16, 5, 5), f"unet.{CONV}.lora_B.weight": ones(16, 4, 1, 1)},
        "(r, 16, 3, 3)",
    ),
    "a convolution as a matrix": ({f"unet.{CONV}.lora_A.weight": ones(4, 16), f"unet.{CONV}.lora_B.weight": ones(16, 4)}, "(r, 16, 3, 3)"),
}

_KEYS: _Cases = {
    "A alone": ({A: PAIR[A]}, "expected all tensors of the module, found only down"),
    "B alone": ({B: PAIR[B]}, "expected all tensors of the module, found only up"),
    "alpha alone": ({_ALPHA: torch.tensor(1.0)}, "expected the tensors of one kind of adapter, found alpha"),
    "no tensors": ({}, "found no tensors at all"),
    "a full checkpoint": ({"conv_in.weight": ones(16, 9, 3, 3), "conv_in.bias": ones(16)}, "this is a checkpoint, not a LoRA"),
    "a module twice, in two dialects": ({**PAIR, **KOHYA}, "expected one down for"),
    "a module twice, in one": ({**PAIR, f"{Q}.lora.down.weight": ones(4, 32)}, "expected one down for"),
    "a module twice, by its original name": (
        {**PAIR, "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight": ones(4, 32)},
        "one down for",
    ),
    "a module that is not there": ({**PAIR, A.replace("mid_block", "mid_blocks"): ones(4, 32)}, "1 of 3 match nothing: unet.mid_blocks."),
    "a norm": ({**PAIR, "unet.conv_norm_out.lora_A.weight": ones(4, 32)}, "match nothing: unet.conv_norm_out"),
    "a role that is none": ({**PAIR, f"unet.{Q}.lora_C.weight": ones(4, 32)}, "match nothing"),
    "a name of 5,000 letters": ({**PAIR, "x" * 5000: ones(1)}, "xxx..."),
    "a name that clears the screen": ({**PAIR, "esc\x1b[2J\nnext": ones(1)}, "match nothing: 'esc\\x1b[2J\\nnext'"),
    "a name of no letters": ({**PAIR, "": ones(1)}, "1 of 3 match nothing"),
    "a name that leads out": ({**PAIR, "../../etc/passwd.lora_A.weight": ones(1)}, "match nothing: ../../etc/passwd"),
    "1,000 keys of nothing": ({f"unet.x{i}.lora_A.weight": ones(1) for i in range(1000)}, "and 992 more"),
    "text modules that are not there": ({TEXT.replace("layers.0", "layers.77") + ".lora_A.weight": ones(4, 16)}, "1 of 1 match nothing"),
    "text features of another width": (
        {f"{TEXT}.lora_A.weight": ones(4, 768), f"{TEXT}.lora_B.weight": ones(768, 4)},
        "expected (r, 16), found (4, 768)",
    ),
}

ATTN2 = Q.replace("attn1.to_q", "attn2.to_k")
_BASES: _Cases = {
    "SDXL by its second encoder": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": ones(4, 32)}, "one for SDXL"),
    "SDXL by its blocks": ({"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight": ones(4, 32)}, "one for SDXL"),
    "SDXL by its width": ({f"unet.{ATTN2}.lora_A.weight": ones(4, 2048), f"unet.{ATTN2}.lora_B.weight": ones(32, 4)}, ": SDXL"),
    "Stable Diffusion 1 by its width": (
        {f"unet.{ATTN2}.lora_A.weight": ones(4, 768), f"unet.{ATTN2}.lora_B.weight": ones(32, 4)},
        ": Stable Diffusion 1.x",
    ),
    "Stable Diffusion 2 by its width": (
        {f"unet.{ATTN2}.lora_A.weight": ones(4, 1024), f"unet.{ATTN2}.lora_B.weight": ones(32, 4)},
        ": Stable Diffusion 2.x",
    ),
    "Stable Diffusion 3": ({"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": ones(4, 32)}, "one for Stable Diffusion 3"),
    "Flux in diffusers' names": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": ones(4, 32)}, "one for Flux"),
    "Flux in kohya's names": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": ones(4, 32)}, "one for Flux"),
    "AnimateDiff": ({"down_blocks.0.motion_modules.0.temporal_transformer.to_q.lora_A.weight": ones(4, 32)}, "one for "),
    "Wan": ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": ones(4, 32)}, "one for Wan"),
    "a language model": ({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ones(4, 32)}, "adapter_config.json"),
}

_HADA = {f"{FLAT}.hada_w{i}_{side}": ones(*((32, 3) if side == "a" else (3, 32))) for i in (1, 2) for side in "ab"}
_CONV_LORA = {f"{FLAT_CONV}.lora_down.weight": ones(4, 16, 1, 1), f"{FLAT_CONV}.lora_up.weight": ones(16, 4, 1, 1)}
_PARTS: _Cases = {
    "DoRA of another height": ({**KOHYA, f"{FLAT}.dora_scale": ones(31, 1)}, "dora_scale: expected 32 norms, found (31, 1)"),
    "DoRA of NaN": ({**KOHYA, f"{FLAT}.dora_scale": ones(32, 1) * torch.nan}, "finite numbers, found NaN"),
    "DoRA without LoRA": ({f"{FLAT}.dora_scale": ones(32, 1)}, "the tensors of one kind of adapter, found dora_scale"),
    "DoRA twice": ({**KOHYA, f"{FLAT}.dora_scale": ones(32, 1), f"{FLAT}.lora_magnitude_vector": ones(32)}, "one kind of adapter"),
    "LoHa without its last part": ({key: part for key, part in _HADA.items() if not key.endswith("w2_b")}, "found only hada_w1_a"),
    "LoHa that does not fit": ({**_HADA, f"{FLAT}.hada_w2_b": ones(3, 31)}, "expected (3, 32), found (3, 31)"),
    "LoHa of ranks that differ": ({**_HADA, f"{FLAT}.hada_w1_b": ones(4, 32)}, "expected (3, 32), found (4, 32)"),
    "LoHa and LoRA": ({**_HADA, **KOHYA}, "the tensors of one kind of adapter"),
    "LoHa beyond all": ({**_HADA, f"{FLAT}.hada_w1_a": ones(32, 3) * 1e30}, "expected numbers up to 1e+15"),
    "LoKr of sides that divide nothing": (
        {f"{FLAT}.lokr_w1": ones(5, 4), f"{FLAT}.lokr_w2": ones(8, 8)},
        "expected sides that divide 32 and 32",
    ),
    "LoKr of no rows": ({f"{FLAT}.lokr_w1": ones(0, 4), f"{FLAT}.lokr_w2": ones(8, 8)}, "expected rank >= 1, found rank 0"),
    "LoKr of half": ({f"{FLAT}.lokr_w1": ones(4, 4)}, "lokr_w2_a: expected all tensors of the module"),
    "LoKr that does not fit": ({f"{FLAT}.lokr_w1": ones(4, 4), f"{FLAT}.lokr_w2": ones(8, 9)}, "lokr_w2: expected (8, 8), found (8, 9)"),
    "LoKr with half a factor": ({f"{FLAT}.lokr_w1": ones(4, 4), f"{FLAT}.lokr_w2_a": ones(8, 2)}, "lokr_w2_b: expected all tensors"),
    "Tucker in a linear layer": ({**KOHYA, f"{FLAT}.lora_mid.weight": ones(4, 4, 3, 3)}, "lora_mid: expected a convolution"),
    "Tucker of another rank": (
        {**_CONV_LORA, f"{FLAT_CONV}.lora_mid.weight": ones(4, 5, 3, 3)},
        "expected (r, 4, 3, 3), found (4, 5, 3, 3)",
    ),
    "Tucker of another kernel": ({**_CONV_LORA, f"{FLAT_CONV}.lora_mid.weight": ones(4, 4, 5, 5)}, "expected (r, 4, 3, 3)"),
    "Tucker alone": ({f"{FLAT_CONV}.lora_mid.weight": ones(4, 4, 3, 3)}, "the tensors of one kind of adapter, found mid"),
    "a difference of another shape": ({f"{FLAT}.diff": ones(32, 31)}, "diff: expected (32, 32), found (32, 31)"),
}

_KINDS: _Cases = {
    "OFT": ({f"{FLAT}.oft_blocks": ones(4, 8, 8)}, "found OFT"),
    "BOFT": ({f"{Q}.boft_R": ones(4)}, "found "),
    "IA3": ({f"{FLAT}.on_input": ones(1)}, "found IA3"),
    "VeRA": ({f"{Q}.vera_lambda_b": ones(4)}, "found VeRA"),
    "GLoRA": ({f"{FLAT}.a1.weight": ones(4)}, "found GLoRA"),
    "LoRA with bias": ({**PAIR, f"unet.{Q}.lora_B.bias": ones(32)}, "found LoRA with bias"),
    "textual inversion": ({"emb_params": ones(4, 768)}, "found textual inversion"),
    "a difference with alpha": ({f"{FLAT}.diff": ones(32, 32), _ALPHA: torch.tensor(1.0)}, "found alpha with it"),
    "whole numbers": ({**PAIR, A: ones(4, 32).to(torch.int8)}, "expected floats, found I8"),
    "complex numbers": ({**PAIR, A: ones(4, 32).to(torch.complex64)}, "expected floats, found C64"),
    "truths": ({**PAIR, A: ones(4, 32).bool()}, "expected floats, found BOOL"),
}
_SCALES = {A: {"dtype": "F8_E8M0", "shape": [4, 32], "data_offsets": [0, 128]}, B: entry(128, 640, shape=[32, 4])}


def _cases(found: _Cases, error: type[QuadError]) -> list[Case]:
    return [Case(name, of_tensors(tensors), error, says) for name, (tensors, says) in found.items()]


NUMBERS, KEYS, BASES, PARTS = (_cases(found, InputError) for found in (_NUMBERS, _KEYS, _BASES, _PARTS))
KINDS = [
    *_cases(_KINDS, UnsupportedError),
    Case("float8 of exponents alone", of_bytes(headed(_SCALES, bytes(640))), UnsupportedError, "F8_E8M0"),
]
