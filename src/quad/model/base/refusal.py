"""The words that refuse a model of another family, with that family's name where it is known."""

from __future__ import annotations

SUPPORTED = "a Stable Diffusion 1.x or 2.x or PixArt-alpha model"
CHOOSE = "choose such a model"
# Part of a pipeline's or a network's class name -> its family; the first that fits.
_FAMILIES = {"StableDiffusionXL": "SDXL", "StableDiffusion3": "Stable Diffusion 3", "SD3": "Stable Diffusion 3", "Flux": "Flux",
             "PixArt": "PixArt", "Sana": "Sana", "HunyuanDiT": "Hunyuan-DiT", "Kandinsky": "Kandinsky", "DiT": "DiT"}  # fmt: skip


def with_family(class_name: str) -> str:
    """A class's name, and the family that it shows."""
    family = next((name for part, name in _FAMILIES.items() if part in class_name), None)
    return f"{class_name} ({family})" if family else class_name
