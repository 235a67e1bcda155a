"""The text encoders of a model before their weights are read, and the one input that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer
from torch import nn

from quad.core.errors import InputError, mismatch
from quad.core.families import Family
from quad.core.manifest import TextSpec
from quad.core.storage.stable_file import StableFile
from quad.model.base.load_component import StoredComponent
from quad.model.base.text.clip_pair import AS_TRAINED, ClipPair

_OLD_END = 2  # transformers reads it as the largest id of a prompt, which is CLIP's end


@dataclass(frozen=True, kw_only=True)
class StoredTexts:
    """One text encoder, or two that read the same tokens.

    Args:
        tokenizer: the text of a `tokenizer.json`.
        text: their input, and their output's width.
        end: token that ends a prompt.
        pads: tokens that fill a prompt up, of each.
    """

    encoders: tuple[StoredComponent, ...]
    tokenizer: str
    text: TextSpec
    end: int = 0
    pads: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[StableFile, ...]:
        """All that their weights are stored in."""
        return tuple(file for encoder in self.encoders for file in encoder.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on what is stored and passed over."""
        return tuple(note for encoder in self.encoders for note in encoder.notes)

    def load(self, least: int | None = None) -> nn.Module:
        """The network that reads a prompt, in float32, eval, without gradients.

        Args:
            least: as of `StoredComponent.load`.

        Raises:
            InputError: as `StoredComponent.load`.
        """
        networks = [encoder.load(least) for encoder in self.encoders]
        if len(networks) == 1:
            return networks[0]
        pair = ClipPair(*networks, end=self.end, pads=(self.pads[0], self.pads[1]))
        return pair.eval().requires_grad_(False)


def joined_texts(
    place: Path, family: Family, encoders: Sequence[StoredComponent], tokenizers: Sequence[tuple[str, TextSpec]], zeros_for_empty: bool
) -> StoredTexts:
    """The text encoders of a model as one.

    Args:
        place: where they are from, for messages.
        tokenizers: of each its JSON text, and its encoder's input.
        zeros_for_empty: an empty negative prompt is zeros.

    Raises:
        InputError: two that do not read the same tokens.
    """
    tokenizer, text = tokenizers[0]
    zeros = zeros_for_empty or msgspec.UNSET
    if len(encoders) == 1:
        return StoredTexts(encoders=tuple(encoders), tokenizer=tokenizer, text=msgspec.structs.replace(text, zeros_for_empty=zeros))
    end = _end(tokenizer)
    for other, second in tokenizers[1:]:
        same = Tokenizer.from_str(other).get_vocab() == Tokenizer.from_str(tokenizer).get_vocab() and _end(other) == end
        if not same or second.length != text.length or text.pad_id not in (end, second.pad_id):
            expected = f"two tokenizers of the same tokens, {text.length} of a prompt"
            raise InputError(mismatch(f"{place / family.texts[1].tokenizer}", expected, "another", "use the model's own tokenizers"))
    for table, encoder in zip(family.texts, encoders, strict=True):
        if (stated := _end_of(encoder.config)) not in (end, _OLD_END):
            expected = f"eos_token_id {end}, which ends a prompt"
            raise InputError(mismatch(f"{place / table.folder}", expected, stated, "use the model's own text encoder"))
    specs = [spec for _, spec in tokenizers]
    joined = msgspec.structs.replace(
        text,
        hidden=sum(spec.hidden for spec in specs),
        pooled=int(encoders[-1].config.projection_dim),
        clip_skip=AS_TRAINED,
        zeros_for_empty=zeros,
    )
    return StoredTexts(encoders=tuple(encoders), tokenizer=tokenizer, text=joined, end=end, pads=tuple(spec.pad_id for spec in specs))


def _end(tokenizer: str) -> int:
    """The token behind a prompt's last one, where it is not filled up."""
    unpadded = Tokenizer.from_str(tokenizer)
    unpadded.no_padding()
    return int(unpadded.encode("").ids[-1])


def _end_of(config: Any) -> int:
    return int(config.eos_token_id)
