"""A small random PixArt-alpha in diffusers' layout, saved by diffusers' own pipeline, and LoRA files for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

SIZE = 64
# Of one word's length each, so that prompts have tokens of several kinds; `▁` begins a word.
PIECES = ("<pad>", "</s>", "<unk>", "▁a", "▁the", "▁house", "▁cat", "▁red", "▁photo", "▁painting", "▁of", "▁", "s", "e", "t", "a", "o", "n")
ADAPTERS = {
    "ink": (4, ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_v", "to_out.0")),
    "clay": (2, ("attn1.to_q", "attn2.to_k", "ff.net.0.proj", "ff.net.2", "pos_embed.proj", "proj_out", "adaln_single.linear")),
}
TEXT_TARGETS = ("SelfAttention.q", "SelfAttention.o", "DenseReluDense.wo")


def plain_transformer(**changes: Any) -> Any:
    """As diffusers makes it."""
    return diffusers.PixArtTransformer2DModel(
        **{
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
            "sample_size": SIZE // 8, "cross_attention_dim": 16, "caption_channels": 12, "use_additional_conditions": False, **changes,
        }
    )  # fmt: skip


def transformer(**changes: Any) -> Any:
    """It hears the prompt, and answers with something like its sample: it calls noise what mostly is noise, as a trained one does."""
    made = plain_transformer(**changes)
    with torch.no_grad():
        patch = torch.linalg.qr(torch.randn(16, 16)).Q  # from a patch's 4 x 2 x 2 numbers to the inner channels
        made.pos_embed.proj.weight.copy_(4 * patch.reshape(16, 4, 2, 2))
        back = patch.reshape(16, 4, 2, 2).permute(2, 3, 1, 0)
        made.proj_out.weight[:].unflatten(0, (2, 2, -1))[:, :, :4].copy_(back)
        for path, layer in made.named_modules():
            if path.endswith(("attn2.to_v", "attn2.to_out.0", "caption_projection.linear_2")):
                layer.weight.mul_(4)
    return made.eval().requires_grad_(False)


def text_encoder() -> Any:
    config = transformers.T5Config(
        vocab_size=len(PIECES), d_model=12, d_kv=4, d_ff=24, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    made = transformers.T5EncoderModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        for path, layer in made.named_modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(3)
            if path.endswith("relative_attention_bias"):
                layer.weight.normal_()
    return made


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """T5's kind: a Unigram model, `▁` for spaces, `</s>` at the end."""
    made = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(PIECES)], unk_id=2, byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
    )  # fmt: skip


def save_pixart(root: Path) -> Path:
    """A whole directory, with a scheduler of the class of PixArt's own; its noise levels are milder, which an untrained model needs."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, solver_order=2)
    diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer(), text_encoder=text_encoder(), vae=_vae(), transformer=transformer(), scheduler=scheduler
    ).save_pretrained(root)
    return root


def lora_tensors(network: nn.Module, rank: int, endings: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    """`<path>.lora_A.weight` and `<path>.lora_B.weight` for every matching layer."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and path.endswith(endings):
            tail = (1, 1) if isinstance(layer, nn.Conv2d) else ()
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, *layer.weight.shape[1:], generator=draw) * 0.3
            tensors[f"{path}.lora_B.weight"] = torch.randn(layer.weight.shape[0], rank, *tail, generator=draw) * 0.3
    return tensors


def save_lora(folder: Path, tensors: dict[str, Tensor], prefix: str = "transformer.") -> Path:
    """A diffusers LoRA file."""
    folder.mkdir(parents=True)
    file = folder / "pytorch_lora_weights.safetensors"
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, file)
    return file


def save_adapters(root: Path) -> dict[str, Path]:
    """`ink` and `clay`, of different ranks and targets; `ink` reaches the text encoder too."""
    network, text = transformer(), text_encoder()
    files = {}
    for seed, (name, (rank, endings)) in enumerate(ADAPTERS.items()):
        tensors = {f"transformer.{key}": value for key, value in lora_tensors(network, rank, endings, seed).items()}
        if name == "ink":
            tensors |= {f"text_encoder.{key}": value for key, value in lora_tensors(text, rank, TEXT_TARGETS, 9).items()}
        files[name] = save_lora(root / name, tensors, "")
    return files
