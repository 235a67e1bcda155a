"""The small text side: a word-level tokenizer over the closed grammar and a CLIP text model, warmed up on text alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel

from quad.zoo import world
from quad.zoo.train.loop import Plan, run_stage

LENGTH = 32
HIDDEN = 128
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


def new_tokenizer() -> Tokenizer:
    """Word-level, lower case, punctuation dropped; every prompt becomes `LENGTH` ids."""
    vocabulary = {word: i for i, word in enumerate((*SPECIALS, *world.VOCABULARY))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z]+"), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=0, pad_token="<pad>")
    return tokenizer


def new_text_encoder() -> CLIPTextModel:
    """CLIP text model, two layers of 128."""
    config = CLIPTextConfig(
        vocab_size=len(SPECIALS) + len(world.VOCABULARY),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        projection_dim=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModel(config)


def encode(tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
    """Prompts to ids `(N, LENGTH)` int64."""
    return torch.tensor([e.ids for e in tokenizer.encode_batch(prompts)], dtype=torch.int64)


def _labels(scene: world.Scene) -> list[int]:
    """Class indices of a scene: time, ground, and kind, colour, size for each place (0 is none)."""
    row = [world.TIMES.index(scene.time), world.GROUNDS.index(scene.ground)]
    at = {toy.place: toy for toy in scene.toys}
    for place in world.PLACES:
        toy = at.get(place)
        row += [0, 0, 0] if toy is None else [
            1 + world.KINDS.index(toy.kind), 1 + world.COLOURS.index(toy.colour), 1 + world.SIZES.index(toy.size),
        ]  # fmt: skip
    return row


_CLASSES = [3, 3] + [6, 5, 3] * 3


def warm_up_text(plan: Plan, model: nn.Module, read: Callable[[Tensor], Tensor], width: int, tokenizer: Tokenizer) -> None:
    """Teach a text model to gather a whole caption at its last tokens, before any picture is seen.

    Cross-attention then finds 'which kind, which colour, where' ready made; learning that binding through the
    denoising loss alone is the slowest part of training a small text-to-image model.

    Args:
        read: token ids `(N, L)` to the states that are to know all, `(N, rows, width)`.
    """
    head = nn.Linear(width, sum(_CLASSES))

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([31, step])
        scenes = [world.sample_scene(rng, (0.4, 0.35, 0.25)) for _ in range(plan.batch)]
        target = torch.tensor([_labels(scene) for scene in scenes])
        states = read(encode(tokenizer, [scene.caption for scene in scenes])).float()
        logits, rows = head(states), states.shape[1]
        parts = logits.split(_CLASSES, dim=-1)
        losses = [cross_entropy(p.flatten(0, 1), target[:, i, None].expand(-1, rows).flatten()) for i, p in enumerate(parts)]
        return torch.stack(losses).mean()

    run_stage(plan, [model, head], loss)
