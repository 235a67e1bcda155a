"""Stage `base`: the 9-channel U-Net and its text model, jointly, on a mixture in index the condition channels are alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextModel

from quad.zoo.train.loop import Plan, run_stage
from quad.zoo.train.text import HIDDEN, encode, new_tokenizer

MIXTURE = {"plain": 0.34, "face": 0.20, "inpaint": 0.16, "edit": 0.14, "copy": 0.04, "line": 0.12}
CAPTION_DROP = 0.10
FOCUS_WEIGHT = 2.5


def new_unet(channels: tuple[int, ...] = (64, 96, 160)) -> UNet2DConditionModel:
    """Stable Diffusion's U-Net in small: 9 input channels, GroupNorm, skip concats, self- and cross-attention."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=9,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Cosine schedule rescaled to zero terminal SNR, v-prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Target latents, condition latents, masks and focus `(N, ., 16, 16)`, token ids `(N, L)`, and size conditions `(N, 6)`, if any."""

    target: Tensor
    condition: Tensor
    mask: Tensor
    focus: Tensor
    ids: Tensor
    sizes: Tensor | None = None


Words = Callable[[Tensor, Tensor | None], Tensor]  # token ids `(N, L)` and size conditions to what the U-Net reads, `(N, rows, D)`


class Mixture:
    """Draws batches from the cached kinds; latents come out normalised per channel."""

    def __init__(
        self,
        cached: dict[str, dict[str, np.ndarray]],
        shift: np.ndarray,
        scale: np.ndarray,
        *,
        shares: Mapping[str, float] = MappingProxyType(MIXTURE),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Take the cached kinds.

        Args:
            shift, scale: normalisation of the latents, `(4,)`.
            shares: kind -> its part of a batch; `copy` is a plain picture given as its own condition.
            tokenizer: `toyland`'s where none is named.
        """
        tokenizer, self.shares = tokenizer or new_tokenizer(), shares
        self.ids = {kind: encode(tokenizer, data["prompts"].tolist()) for kind, data in cached.items()}
        self.empty = encode(tokenizer, [""])[0]
        self.data = cached
        self.shift, self.scale = shift.reshape(4, 1, 1), scale.reshape(4, 1, 1)

    def _latent(self, kind: str, row: int, index: int) -> np.ndarray:
        raw = self.data[kind]["latents"][row, index].astype(np.float32)
        return np.asarray((raw - self.shift) * self.scale, dtype=np.float32)

    def _one(self, kind: str, rng: np.random.Generator) -> tuple[Any, ...]:
        source = {"copy": "plain"}.get(kind, kind)
        row = int(rng.integers(len(self.data[source]["latents"])))
        masks = self.data[source]["masks"][row].astype(np.float32)
        target = self._latent(source, row, 0)
        condition, mask = np.zeros_like(target), np.ones_like(masks[:1])
        if kind == "copy":
            condition, mask = target, np.zeros_like(mask)
        elif self.data[source]["latents"].shape[1] > 1:
            condition = self._latent(source, row, 1)
            mask = masks[1:2] if kind == "inpaint" else np.full_like(mask, float(kind == "line"))
        ids = self.empty if rng.random() < CAPTION_DROP and kind != "edit" else self.ids[source][row]
        row_of_sizes = self.data[source]["sizes"][row] if "sizes" in self.data[source] else np.zeros(0, np.int64)
        return target, condition, mask, masks[:1], row_of_sizes, ids

    def batch(self, step: int, size: int) -> Batch:
        """Samples of all kinds in their shares, the same at the same step."""
        rng = np.random.default_rng([9, step])
        kinds = rng.choice(list(self.shares), size=size, p=list(self.shares.values()))
        rows = [self._one(str(kind), rng) for kind in kinds]
        target, condition, mask, focus, sizes = (torch.from_numpy(np.stack([row[i] for row in rows])) for i in range(5))
        ids = torch.stack([row[5] for row in rows])
        return Batch(target=target, condition=condition, mask=mask, focus=focus, ids=ids, sizes=sizes if sizes.numel() else None)


def v_weight(abar: Tensor) -> Tensor:
    """Min-SNR weight that does not vanish at zero SNR: `min(snr + 1, 6) / (snr + 1)` for v-prediction."""
    snr_plus_one = 1 / (1 - abar).clamp_min(1e-8)
    weight: Tensor = snr_plus_one.clamp_max(6.0) / snr_plus_one
    return weight


def denoising_loss(unet: UNet2DConditionModel, hidden: Tensor, batch: Batch, weight: Tensor, abar: Tensor, t: Tensor) -> Tensor:
    """Weighted v-prediction loss at timesteps `t (N,)`; `weight (N, 1, 16, 16)` is relative."""
    a, s = abar[t].sqrt().view(-1, 1, 1, 1).float(), (1 - abar[t]).sqrt().view(-1, 1, 1, 1).float()
    noise = torch.randn_like(batch.target)
    x = torch.cat([a * batch.target + s * noise, batch.condition, batch.mask], dim=1)
    v = unet(x, t, hidden).sample.float()
    error = (v - (a * noise - s * batch.target)).square()
    share = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    loss: Tensor = (error * share * v_weight(abar[t]).view(-1, 1, 1, 1)).mean()
    return loss


def last_states(text: CLIPTextModel) -> Words:
    """The words of a model with one text encoder."""
    return lambda ids, sizes: text(ids).last_hidden_state


def train_base(unet: UNet2DConditionModel, texts: Sequence[nn.Module], words: Words, mixture: Mixture, plan: Plan) -> None:
    """Train U-Net and text encoders in place; all hold the averaged weights afterwards."""
    unet.set_attn_processor(AttnProcessor())  # on a CPU the fused attention's backward pass takes 28 % of a step
    abar = new_scheduler().alphas_cumprod.double()

    def loss(step: int) -> Tensor:
        batch = mixture.batch(step, plan.batch)
        t = (torch.rand(plan.batch) * 1000).long()
        t[: plan.batch // 16] = 999
        return denoising_loss(unet, words(batch.ids, batch.sizes), batch, 1 + (FOCUS_WEIGHT - 1) * batch.focus, abar, t)

    run_stage(plan, [unet, *texts], loss)
