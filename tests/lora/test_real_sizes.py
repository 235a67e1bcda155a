"""Kinds that are no two matrices, at Stable Diffusion's own layer sizes: what a conversion misses is said, and can be kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from quad.core.errors import InputError
from quad.lora.adapter import FloatAdapter
from quad.lora.layout import LayerLayout, NetworkLayout
from quad.lora.read import RankLimits, read_lora

Array = NDArray[np.float32]
Case = tuple[str, Array, dict[str, Array], Array]  # path, the base's weight, the file's tensors, and what they add to the weight
LINEAR, CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.2.resnets.0.conv2"
FLAT = {path: "lora_unet_" + path.replace(".", "_") for path in (LINEAR, CONV)}


def noise(*shape: int, seed: int = 0, size: float = 0.02) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def lokr_full(width: int) -> Case:
    """LyCORIS' LoKr of factor 8 on a linear layer, both factors written out and of full rank."""
    first, second = noise(8, 8, seed=1), noise(width // 8, width // 8, seed=2)
    tensors = {f"{FLAT[LINEAR]}.lokr_w1": first, f"{FLAT[LINEAR]}.lokr_w2": second}
    return LINEAR, np.zeros((width, width), np.float32), tensors, np.kron(first, second)


def loha(width: int) -> Case:
    """LoHa on a kernel, of dimension 32 at width 640: its rank is 1024 there, more than is left."""
    dim = width // 20
    parts = {
        f"hada_w{i}_{side}": noise(*((width, dim) if side == "a" else (dim, width * 9)), seed=i, size=0.1) for i in (1, 2) for side in "ab"
    }
    delta = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    return CONV, np.zeros((width, width, 3, 3), np.float32), {f"{FLAT[CONV]}.{role}": part for role, part in parts.items()}, delta


def dora(width: int) -> Case:
    """DoRA of rank 16 on a kernel, its norms moved by a fifth: every row of the base is scaled, which is of full rank."""
    weight, down, up = noise(width, width, 3, 3), noise(16, width, 3, 3, seed=1), noise(width, 16, 1, 1, seed=2)
    flat = weight.reshape(width, -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True) * (1 + noise(width, 1, seed=3, size=0.2))
    changed = flat + up[:, :, 0, 0] @ down.reshape(16, -1)
    delta = changed * norms / np.linalg.norm(changed, axis=1, keepdims=True) - flat
    name = FLAT[CONV]
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": norms.reshape(-1, 1, 1, 1)}
    return CONV, weight, tensors, delta


def weight_of(weight: Array) -> Array:
    return weight


@pytest.mark.parametrize(
    ("case", "width"),
    [
        (lokr_full, 1280),
        (loha, 320),
        (dora, 320),
        pytest.param(loha, 640, marks=pytest.mark.soak),
        pytest.param(dora, 640, marks=pytest.mark.soak),
    ],
)
def test_no_large_error_is_accepted_in_silence(case: Callable[[int], Case], width: int, tmp_path: Path) -> None:
    path, weight, tensors, delta = case(width)
    save_file(tensors, tmp_path / "a.safetensors")
    layout = NetworkLayout({path: LayerLayout(weight.shape, partial(weight_of, weight))})

    def read(limits: RankLimits | None = None) -> FloatAdapter:
        return read_lora("a", tmp_path / "a.safetensors", layout, limits=limits)

    def error(adapter: FloatAdapter) -> float:
        pair = adapter.weights[path]
        missed = delta - pair.b.reshape(len(pair.b), -1) @ pair.a.reshape(pair.rank, -1)
        return float(np.linalg.norm(missed) / np.linalg.norm(delta))

    with pytest.raises(InputError, match=r"0\.9 of each module's energy at its rank, found .*or give it rank \d+ of its own"):
        read(RankLimits(width // 10))
    lossy = read(RankLimits(width // 10, 0.0))
    assert error(lossy) > 0.1
    assert lossy.error == pytest.approx(error(lossy), rel=1e-3)
    note = lossy.notes[-1]
    assert note.startswith(f"its change of weights is off by {lossy.error:.2%}, ")
    enough = int(note.partition("; rank ")[2].split()[0])
    kept = read(RankLimits(enough))
    print(f"{case.__name__} {weight.shape}: rank {lossy.rank} error {error(lossy):.4f}, rank {kept.rank} error {error(kept):.4f}")
    assert error(kept) <= 0.0317
    assert kept.rank <= enough
