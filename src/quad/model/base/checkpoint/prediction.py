"""Whether a checkpoint's U-Net predicts noise or velocity: nothing in its shapes tells.

In this order: what the user says; the file's metadata (ModelSpec) or its marker `v_pred`; the config beside it, `NAME.yaml`, as the
training code writes it; and for Stable Diffusion 2.x with 4 channels the spread of one bias, which ComfyUI goes by: above 0.09 in the
models with velocity. Everything else predicts noise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quad.core.errors import UsageError, mismatch
from quad.model.base.checkpoint.layout import UNET_PREFIX, ModelCheckpoint

EPSILON, VELOCITY = "epsilon", "v_prediction"
_WORDS: Mapping[str, str] = {
    "epsilon": EPSILON, "eps": EPSILON, "v": VELOCITY, "v_prediction": VELOCITY, "v-prediction": VELOCITY, "velocity": VELOCITY,
}  # fmt: skip
_METADATA = ("modelspec.prediction_type", "prediction_type")
_SPREAD_OF = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD = 0.09
_YAML = re.compile(rb"^\s*parameterization:\s*[\"']?(\w+)", re.MULTILINE)
_LARGEST_YAML = 2**20


def prediction_word(word: str) -> str:
    """`epsilon` or `v_prediction`, in diffusers' words.

    Raises:
        UsageError: neither.
    """
    if word not in _WORDS:
        raise UsageError(mismatch("--prediction", "epsilon or v", repr(word), "choose one of these"))
    return _WORDS[word]


def prediction_of(checkpoint: ModelCheckpoint, asked: str | None) -> tuple[str, str | None]:
    """Noise or velocity, in diffusers' words, and a note where that was not certain or not usual.

    Raises:
        UsageError: `asked` is neither `epsilon` nor `v`.
    """
    if asked is not None:
        return prediction_word(asked), None
    written = next((_WORDS.get(checkpoint.metadata.get(field, "")) for field in _METADATA if field in checkpoint.metadata), None)
    if written is not None or "v_pred" in checkpoint.weights:
        return _noted(written or VELOCITY, "as the file itself says")
    if (beside := _beside(checkpoint)) is not None:
        return _noted(beside, f"as {checkpoint.path.with_suffix('.yaml').name} beside it says")
    bias = checkpoint.weights.get(_SPREAD_OF)
    if not checkpoint.table.guess_velocity or checkpoint.channels != 4 or bias is None:
        return EPSILON, None
    spread = float(bias.read().std(correction=0))
    kind = VELOCITY if spread > _SPREAD else EPSILON
    return (
        kind,
        f"prediction: {kind}, guessed from the spread of one bias ({spread:.3f}, above {_SPREAD} is v); --prediction says otherwise",
    )


def _noted(kind: str, reason: str) -> tuple[str, str | None]:
    return kind, f"prediction: {kind}, {reason}" if kind == VELOCITY else None


def _beside(checkpoint: ModelCheckpoint) -> str | None:
    """The word of the training code's config beside the file; its default is noise."""
    file = checkpoint.path.with_suffix(".yaml")
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST_YAML:
            return None
        text = file.read_bytes()
    except OSError:
        return None
    written = _YAML.search(text)
    return EPSILON if written is None else _WORDS.get(written[1].decode(errors="replace"))
