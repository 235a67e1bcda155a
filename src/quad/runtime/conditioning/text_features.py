"""Hidden states of a prompt, with the weights of its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.manifest import TextSpec
from quad.runtime.conditioning.prompt_chunks import Chunk, PromptTokens
from quad.runtime.engines.engine import Runnable

Float = NDArray[np.float32]
# A mean below this share of the RMS is rounding.
LEAST_MEAN = 1e-5


def text_features(encoder: Runnable, prompt: PromptTokens, text: TextSpec) -> Float:
    """The hidden states of a prompt's chunks one after another, and the numbers of the first one as a whole.

    Args:
        text: rows of zeros fill up what a prompt leaves of the tokens that the denoiser reads.

    Returns:
        float32 `(1, context + pooled_rows, D)`.
    """
    outputs = [encoder.run(_inputs(encoder, chunk)) for chunk in prompt.chunks]
    hidden = [emphasised(output[:, : text.length], chunk.weights) for output, chunk in zip(outputs, prompt.chunks, strict=True)]
    features = filled_up(hidden[0] if len(hidden) == 1 else np.concatenate(hidden, axis=1), text.context)
    return np.concatenate([features, outputs[0][:, text.length :]], axis=1) if text.pooled_rows else features


def in_rows(numbers: Float, width: int) -> Float:
    """Numbers `(1, n)` as rows of a width `(1, rows, width)`, the last filled up with zeros."""
    return np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % width))).reshape(1, -1, width)


def filled_up(hidden: Float, context: int) -> Float:
    """Hidden states `(B, L, D)` with rows of zeros up to `(B, context, D)`; as they are where they are as many."""
    missing = context - hidden.shape[1]
    return hidden if missing <= 0 else np.pad(hidden, ((0, 0), (0, missing), (0, 0)))


def _inputs(encoder: Runnable, chunk: Chunk) -> dict[str, NDArray[Any]]:
    """The inputs of the graph for a chunk: vectors too where it takes them."""
    shape = encoder.inputs.get("embeddings")
    if shape is None:
        return {"input_ids": chunk.ids}
    return {
        "input_ids": chunk.ids,
        "embeddings": np.zeros([axis or 1 for axis in shape], np.float32) if chunk.vectors is None else chunk.vectors,
    }


def emphasised(hidden: NDArray[Any], weights: NDArray[np.float64]) -> Float:
    """Each token's hidden state times its weight, and all of them scaled so that their mean is what it was.

    Where a mean is nothing but rounding, as that of a network which was never trained, there is no scale to restore.
    Source: the rule of AUTOMATIC1111's stable-diffusion-webui, "Emphasis: Original".

    Args:
        hidden: float32 `(1, L, D)`; given back as it is where all weights are 1.
        weights: `(L,)`.
    """
    if (weights == 1.0).all():
        return hidden
    before = hidden.astype(np.float64)
    after = before * weights[:, None]
    least = LEAST_MEAN * np.sqrt(np.square(before).mean())
    means = before.mean(), after.mean()
    scale = means[0] / means[1] if min(map(abs, means)) > least else 1.0
    return np.asarray(after * scale, np.float32)
