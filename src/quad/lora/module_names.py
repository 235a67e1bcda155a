"""The names that a LoRA file may give each module of a network: diffusers' own path, kohya's underscores, the original code's.

Stable Diffusion was published with other names (`input_blocks.1.1`, `middle_block`, `output_blocks`) than diffusers gave it
(`down_blocks.0.attentions.0`). Trainers that read the original checkpoint write those. The numbers follow from the network itself: the
original counts the convolution at the entrance, then each ResNet (with its attention) and each downsampler as one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from quad.core.families import FAMILIES, Component
from quad.core.slots import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from quad.lora.keys import LoraKey
from quad.lora.layout import TEXT_PREFIX, text_part

_WRAPPER = "text_model."

_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_IN_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


@dataclass(frozen=True)
class Names:
    """Every spelling of the modules that a file may name: (component, flat, spelling) to the slot's path."""

    paths: Mapping[tuple[Component, bool, str], str]

    def find(self, key: LoraKey) -> str | None:
        """The slot's path for a key; None if there is no such module."""
        components: tuple[Component, ...] = (key.component,) if key.component else (UNET, TEXT_ENCODER, TEXT_ENCODER_2)
        for component in components:
            if path := self.paths.get((component, key.flat, key.path)):
                return path
        return None


def _original_blocks(paths: Iterable[str]) -> dict[str, str]:
    """diffusers' block (`down_blocks.0.resnets.1`) to the original's (`input_blocks.2.0`)."""
    parts = {(match[1], int(match[2]), match[3], int(match[4])) for path in paths if (match := _BLOCK.match(path))}

    def count(side: str, block: int, kind: str) -> int:
        return sum(part[:3] == (side, block, kind) for part in parts)

    blocks = {f"mid_block.{ours}": theirs for ours, theirs in _MIDDLE.items()}
    for side, first, sampler in (("down_blocks", 1, "downsamplers"), ("up_blocks", 0, "upsamplers")):
        number = first
        for block in sorted({part[1] for part in parts if part[0] == side}):
            name, original = f"{side}.{block}", "input_blocks" if side == "down_blocks" else "output_blocks"
            resnets, attended = count(side, block, "resnets"), count(side, block, "attentions") > 0
            for i in range(resnets):
                blocks[f"{name}.resnets.{i}"] = f"{original}.{number + i}.0"
                blocks[f"{name}.attentions.{i}"] = f"{original}.{number + i}.1"
            number += resnets
            if side == "up_blocks":  # the upsampler sits behind the last ResNet, in the same block
                blocks[f"{name}.{sampler}.0"] = f"{original}.{number - 1}.{2 if attended else 1}"
            elif count(side, block, sampler):
                blocks[f"{name}.{sampler}.0"] = f"{original}.{number}.0"
                number += 1
    return blocks


def original_names(paths: Iterable[str]) -> dict[str, str]:
    """A U-Net's module paths to the names in Stable Diffusion's original code; modules without such a name are left out."""
    listed = list(paths)
    blocks, names = _original_blocks(listed), {}
    for path in listed:
        parts = path.split(".")
        block, inner = (".".join(parts[: 3 if parts[0] == "mid_block" else 4]), parts[3 if parts[0] == "mid_block" else 4 :])
        if path in _TOP:
            names[path] = _TOP[path]
        elif block in blocks and inner:
            leaf = ".".join(inner)
            if ".downsamplers." in block:
                leaf = "op"
            elif ".resnets." in block:
                leaf = _IN_RESNET.get(leaf, leaf)
            names[path] = f"{blocks[block]}.{leaf}"
    return names


# Transforms that a family's table names: the denoiser's module paths to further names of theirs.
SPELLINGS: Mapping[str, Callable[[Iterable[str]], dict[str, str]]] = {"original-blocks": original_names}


def _unet_spellings(paths: list[str], complete: bool) -> Iterator[tuple[str, str]]:
    for path in paths:
        yield path, path
    transforms = dict.fromkeys(name for family in FAMILIES for name in family.lora.spellings)
    for name in transforms if complete else ():
        for path, spelling in SPELLINGS[name](paths).items():
            yield spelling, path


def _text_spellings(paths: list[str]) -> Iterator[tuple[Component, str, str]]:
    """Files say `text_model.encoder...`; transformers 5 no longer does."""
    for path in paths:
        component, own = text_part(path)
        bare = own.removeprefix(_WRAPPER)
        yield component, bare, TEXT_PREFIX + path
        yield component, _WRAPPER + bare, TEXT_PREFIX + path


def network_names(unet: Iterable[str], text_encoder: Iterable[str] = (), complete: bool = True) -> Names:
    """Every spelling of the layers of a U-Net and of a text encoder.

    Args:
        unet: module paths, which are slot paths too.
        text_encoder: module paths in the text encoder; their slots are `text_encoder.<path>`.
        complete: the U-Net's are all there; of a part, the original's numbers would be wrong, and its names are left out.
    """
    paths: dict[tuple[Component, bool, str], str] = {}
    ambiguous: set[tuple[Component, bool, str]] = set()
    of_unet: Iterator[tuple[Component, str, str]] = ((UNET, *names) for names in _unet_spellings(list(unet), complete))
    for component, spelling, path in chain(of_unet, _text_spellings(list(text_encoder))):
        for key in ((component, False, spelling), (component, True, spelling.replace(".", "_"))):
            if paths.setdefault(key, path) != path:
                ambiguous.add(key)
    return Names({key: path for key, path in paths.items() if key not in ambiguous})
