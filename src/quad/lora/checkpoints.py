"""Whole models that are given where a LoRA belongs, told by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from quad.core.errors import InputError, mismatch
from quad.lora.quote import quoted

# The first layer of every network that a checkpoint may hold, in the original names, diffusers' and transformers'.
_FIRST_LAYER = re.compile(
    r"(^|\.)(input_blocks\.0\.0|conv_in|(token|patch|position)_embedding|pos_embed\.proj|x_embedder(\.proj)?|shared|img_in)\.weight$"
)
# PEFT saves whole layers beside its matrices (`modules_to_save`).
_ADAPTER = re.compile(r"lora|lokr_|hada_|\.diff(_b)?$|oft_|boft|vera_|ia3|dora")


def refuse_checkpoint(path: Path, names: Iterable[str]) -> None:
    """Refuse the weights of a whole network.

    Args:
        names: of all tensors in the file.

    Raises:
        InputError: they are, and none belongs to an adapter.
    """
    first = next((name for name in names if _FIRST_LAYER.search(name)), None)
    if first is not None and not any(_ADAPTER.search(name) for name in names):
        weights = f"whole weights such as {quoted(first)}"
        raise InputError(mismatch(f"{path}", "a LoRA", weights, "this is a checkpoint, not a LoRA: give it as MODEL"))
