"""The other models that LoRA files are trained for, known by the names and widths only they have."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SD_BLOCK = r"(?:attentions[._]\d+|(?:input|output)_blocks[._]\d+[._]1|middle_block[._]1)"

# In this order: Flux has SD3's names too, and what merely says `transformer` is looked at last.
_BY_NAME: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"lora_te2_|clip_g\.|text_encoder_2\.|add_embedding|label_emb|" + _SD_BLOCK + r"[._]transformer_blocks[._][1-9]", "SDXL"),
        (r"single_transformer_blocks|double_blocks|single_blocks", "Flux"),
        (r"joint_blocks|(?:^|[._])transformer_blocks[._]\d+[._]attn[._]add_[qkv]_proj", "Stable Diffusion 3"),
        (r"motion_modules", "AnimateDiff"),
        (r"temporal_transformer_blocks|temp_attentions|temp_convs", "a video model"),
        (r"(?:^|[._])blocks[._]\d+[._](?:self_attn|cross_attn)", "Wan"),
        (r"adaln_single|caption_projection", "PixArt"),
        (r"lora_controlnet|control_model|controlnet", "a ControlNet"),
        (r"(?:^|\.)model\.layers\.\d+\.(?:self_attn|mlp)", "a language model"),
        (r"(?:lora_transformer_|(?:^|\.)transformer\.)transformer_blocks", "a diffusion transformer (Flux, Stable Diffusion 3, PixArt)"),
    )
)

# Width of the text features that cross-attention reads.
_BY_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
OTHER_BASE = "another base"
_ALL_WIDTHS = re.compile(r"\.attn2\.to_[kv]$")


def base_by_names(keys: Iterable[str]) -> tuple[str, str] | None:
    """The base that some key shows, and that key; None if no key is of a base known here."""
    listed = list(keys)
    for pattern, name in _BY_NAME:
        for key in listed:
            if pattern.search(key):
                return name, key
    return None


def reads_text(path: str) -> bool:
    """Whether a module's input is the text features, so that its width tells the base."""
    return _ALL_WIDTHS.search(path) is not None


def base_by_width(width: int) -> str:
    """The base whose text features are so wide."""
    return _BY_WIDTH.get(width, OTHER_BASE)
