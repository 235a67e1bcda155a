"""Families that do not open, so that a model or a LoRA of one is refused by its name."""

from __future__ import annotations

from quad.core.families.table import Signs

# In this order: Flux has SD3's names too, and what merely says `transformer` or DiT is looked at last.
OTHERS = (
    Signs(name="a model with class or noise labels", tensors=("model.diffusion_model.label_emb.weight",)),
    Signs(name="the SDXL refiner", tensors=("conditioner.embedders.0.model.",)),
    Signs(name="SDXL in diffusers' names", tensors=("add_embedding.",)),
    Signs(
        name="Flux",
        classes=("Flux",),
        tensors=("double_blocks.",),
        keys=r"single_transformer_blocks|double_blocks|single_blocks",
        metadata="flux|chroma",
    ),
    Signs(
        name="Stable Diffusion 3",
        classes=("StableDiffusion3", "SD3"),
        tensors=("joint_blocks.",),
        keys=r"joint_blocks|(?:^|[._])transformer_blocks[._]\d+[._]attn[._]add_[qkv]_proj",
        metadata=r"stable-diffusion-v?3|sd-?v?3",
    ),
    Signs(name="Stable Cascade", tensors=("clip_txt_mapper.",)),
    Signs(name="ControlNet", tensors=("control_model.", "controlnet_cond_embedding.")),
    Signs(name="AnimateDiff", tensors=("motion_modules.",), keys=r"motion_modules"),
    Signs(name="PixArt in one file", tensors=("adaln_single.",)),
    Signs(name="AuraFlow", tensors=("double_layers.",)),
    Signs(name="Sana", classes=("Sana",)),
    Signs(name="Hunyuan-DiT", classes=("HunyuanDiT",)),
    Signs(name="Kandinsky", classes=("Kandinsky",)),
    Signs(name="DiT", classes=("DiT",)),
    Signs(name="a video model", keys=r"temporal_transformer_blocks|temp_attentions|temp_convs"),
    Signs(name="Wan", keys=r"(?:^|[._])blocks[._]\d+[._](?:self_attn|cross_attn)"),
    Signs(name="a ControlNet", keys=r"lora_controlnet|control_model|controlnet"),
    Signs(name="a language model", keys=r"(?:^|\.)model\.layers\.\d+\.(?:self_attn|mlp)"),
    Signs(
        name="a diffusion transformer (Flux, Stable Diffusion 3, PixArt)",
        keys=r"(?:lora_transformer_|(?:^|\.)transformer\.)transformer_blocks",
    ),
)
