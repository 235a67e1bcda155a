"""The FP32 side of every pair: diffusers modules with PEFT adapters, nothing of our slotted graph.

It shares with the runtime only what makes pairs pairs: samplers, tokenizer, conditioning and the noise of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import LatentSpec, NoiseSchedule, TaskSpec, TextSpec
from quad.core.picture_size import PictureSize
from quad.evaluate.figures.merged_adapters import MergedAdapters
from quad.evaluate.figures.peft_adapters import PeftAdapters
from quad.model.base.open import BaseOptions, open_model
from quad.model.base.text.clip_skip import with_clip_skip
from quad.model.device import HERE, open_device
from quad.runtime.conditioning.condition import Condition, PasteBack, Pictures, make_condition, to_model
from quad.runtime.conditioning.denoising import layouts
from quad.runtime.conditioning.guidance import is_guided
from quad.runtime.conditioning.size_conditions import DEFAULT_SIZES, with_sizes
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.samplers import run_sampler
from quad.runtime.stages import to_picture

BATCH = 16


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """One picture to make: `image` uint8 `(S, S, 3)`, `mask` uint8 `(S, S)` with 255 inside; both only where the task asks."""

    prompt: str
    seed: int
    image: NDArray[np.uint8] | None = None
    mask: NDArray[np.uint8] | None = None


class SeedRows:
    """One generator per picture of a batch, so that a batch draws what single runs draw."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._rows = [np.random.default_rng(seed) for seed in seeds]

    def standard_normal(self, shape: tuple[int, ...], dtype: Any = np.float64) -> NDArray[Any]:
        """Unit normal of `shape` `(N, ...)`, row i from generator i."""
        return np.concatenate([row.standard_normal((1, *shape[1:]), dtype=dtype) for row in self._rows])


class Reference:
    """A model directory of diffusers' layout, float32, with its adapters loaded by PEFT."""

    def __init__(
        self, directory: Path, adapters: Mapping[str, Path], clip_skip: int = 1, *, vae: Path | None = None,
        merged: Mapping[str, Path] = MappingProxyType({}), merged_weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Open the modules and load every adapter.

        Args:
            directory: the diffusers directory.
            adapters: name -> LoRA file.
            merged: the same of kinds that diffusers does not load.
            merged_weights: factors of their updates, where they are not 1.
            clip_skip, vae: as a bundle was built with.
        """
        base = with_clip_skip(open_model(directory, BaseOptions(vae=vae)), clip_skip)
        self.schedule: NoiseSchedule = base.schedule
        self.latent: LatentSpec = base.latent
        self.text: TextSpec = base.text
        self.picture_size: PictureSize = base.picture_size
        self.digest: str = base.digest
        self.digest_as: Callable[[str], str] = base.digest_as
        self.tasks: dict[str, TaskSpec] = base.tasks
        self._tokenizer = Tokenizer(base.tokenizer, base.text)
        # Plain diffusers modules, opened for this object alone: what PEFT does to them stays here.
        self._unet, self._text_encoder, self._vae = cast(Any, base.unet), cast(Any, base.text_encoder), cast(Any, base.vae)
        self._beside = layouts(base.latent)[int(self._unet.config.in_channels)]
        self._merged = MergedAdapters(self._unet, self._text_encoder, merged, weights=merged_weights)  # before PEFT wraps the layers
        self._adapters = PeftAdapters(self._unet, self._text_encoder, adapters)
        self._device = HERE

    def on(self, device: str) -> Reference:
        """This reference, computing on one of `quad.core.device.DEVICES` from now on.

        Raises:
            UsageError: this machine has no such device.
        """
        self._device = open_device(device)
        for module in (self._unet, self._text_encoder, self._vae):
            module.to(self._device)
        return self

    @property
    def device(self) -> str:
        """Where it computes."""
        return str(self._device)

    def _shift_scale(self) -> tuple[Tensor, Tensor]:
        shift, scale = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (self.latent.shift, self.latent.scale))
        return shift, scale

    def encode_signal(self, x: Tensor) -> Tensor:
        """Pictures `(N, 3, S, S)` in [-1, 1] to model latents `(N, C, S/f, S/f)`."""
        shift, scale = self._shift_scale()
        with torch.inference_mode():
            encoded = self._vae.encode(x.to(self._device))
            # AutoencoderTiny gives the latent itself, AutoencoderKL a distribution: its mean is meant.
            mean: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (mean.cpu() - shift) * scale

    def decode(self, latent: Tensor, pastes: Sequence[PasteBack | None]) -> NDArray[np.uint8]:
        """Model latents to pictures, rounded and pasted back as the runtime does."""
        shift, scale = self._shift_scale()
        with torch.inference_mode():
            x = self._vae.decode((latent / scale + shift).to(self._device)).sample.cpu().numpy()
        return np.stack([np.asarray(to_picture(x[i : i + 1], paste)) for i, paste in enumerate(pastes)])

    def reconstruct(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Through the VAE and back: the ceiling of every task."""
        parts = []
        for i in range(0, len(pictures), BATCH):
            batch = pictures[i : i + BATCH]
            latent = self.encode_signal(torch.from_numpy(np.concatenate([to_model(picture) for picture in batch])))
            parts.append(self.decode(latent, [None] * len(batch)))
        return np.concatenate(parts)

    def words(self, prompts: Sequence[str]) -> Tensor:
        """All that the U-Net is told of prompts, `(N, rows, D)`, with the adapter that was used last: states, and the picture's size."""
        ids = torch.from_numpy(np.concatenate([self._tokenizer(prompt).ids for prompt in prompts]))
        with torch.inference_mode():
            hidden: Tensor = self._text_encoder(input_ids=ids.to(self._device)).last_hidden_state.cpu()
        return self._with_size(hidden)

    def _with_size(self, states: Tensor) -> Tensor:
        numbers = DEFAULT_SIZES.numbers(self.picture_size)
        return torch.from_numpy(np.concatenate([with_sizes(self.text, row[None].numpy(), numbers) for row in states]))

    def _no_words(self, words: Tensor) -> Tensor:
        """The side without a prompt, as many rows as `words`."""
        if self.text.zeros_for_empty is True:
            return self._with_size(torch.zeros(len(words), self.text.context + self.text.pooled_rows, words.shape[2]))
        return self.words([""] * len(words))

    def _condition(self, conditions: Sequence[Condition]) -> Tensor:
        """The channels of every request that the model reads beside its latent, as `[condition latent | mask]`: `(N, k, h, w)`."""
        mask = torch.from_numpy(np.concatenate([condition.mask for condition in conditions]))
        images = [torch.from_numpy(condition.image) for condition in conditions if condition.image is not None]
        latent = self.encode_signal(torch.cat(images)) if images else torch.zeros(len(mask), self.latent.channels, *mask.shape[2:])
        shift, scale = self._shift_scale()
        parts = {"mask": mask, "condition": latent, "raw-condition": latent / scale + shift if images else latent}
        return torch.cat([mask[:, :0], *(parts[name] for name in self._beside)], dim=1)

    def _batch(self, task: str, spec: TaskSpec, requests: Sequence[PictureRequest]) -> NDArray[np.uint8]:
        rows = SeedRows([request.seed for request in requests])
        noise = rows.standard_normal((len(requests), self.latent.channels, *self.latent.grid(self.picture_size))).astype(np.float32)
        conditions = [
            make_condition(task, spec, Pictures(request.image, request.mask), self.picture_size, self.latent.factor) for request in requests
        ]
        words, extra = self.words([request.prompt for request in requests]), self._condition(conditions)
        if is_guided(spec):
            words, extra = torch.cat([self._no_words(words), words]), torch.cat([extra, extra])

        def model(x: NDArray[Any], t: float) -> NDArray[Any]:
            latent = torch.from_numpy(np.ascontiguousarray(x))
            if not is_guided(spec):
                return self._predict(latent, extra, t, words)
            empty, full = np.split(self._predict(torch.cat([latent, latent]), extra, t, words), 2)
            return np.asarray(empty + np.float32(spec.guidance) * (full - empty))

        latent = run_sampler(spec.sampler, self.schedule, model, noise, cast(np.random.Generator, rows))
        return self.decode(torch.from_numpy(latent), [condition.paste for condition in conditions])

    def _predict(self, latent: Tensor, extra: Tensor, t: float, words: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = self._denoised(torch.cat([latent, extra], dim=1), t, words).numpy()
        return output

    def _denoised(self, sample: Tensor, t: float | Tensor, words: Tensor) -> Tensor:
        step = torch.as_tensor(t, dtype=torch.float32).to(self._device)
        output: Tensor = self._unet(sample.to(self._device), step, words.to(self._device)).sample.cpu()
        return output

    def network_output(self, adapter: str | None, sample: Tensor, t: float | Tensor, words: Tensor) -> Tensor:
        """The bare U-Net's output with an adapter loaded by PEFT: `(B, 9, h, w)` to `(B, 4, h, w)`; `t` is one timestep, or `(B,)`."""
        self.use(*() if adapter is None else (adapter,))
        with torch.inference_mode():
            return self._denoised(sample, t, words)

    def use(self, *adapters: str) -> None:
        """Make these adapters active, each with weight 1, or none; of merged ones one at a time."""
        self._merged.use(next((name for name in adapters if name in self._merged), None))
        self._adapters.use(*(name for name in adapters if name not in self._merged))

    def pictures(
        self, task: str, requests: Sequence[PictureRequest], spec: TaskSpec | None = None, adapters: Sequence[str] | None = None
    ) -> NDArray[np.uint8]:
        """One picture per request, uint8 `(N, S, S, 3)`.

        Args:
            task: a task of the model.
            spec: how to run it; the model's own by default, a bundle's where its sampler was solved anew.
            adapters: active together, in place of the task's own.

        Raises:
            UsageError: the model has no such task, or a request lacks the picture or mask that the task needs.
        """
        if spec is None and task not in self.tasks:
            raise UsageError(mismatch("task", f"one of {', '.join(self.tasks)}", task, "choose one of these"))
        chosen = spec or self.tasks[task]
        own = () if chosen.adapter is None else (chosen.adapter,)
        self.use(*own if adapters is None else adapters)
        return np.concatenate([self._batch(task, chosen, requests[i : i + BATCH]) for i in range(0, len(requests), BATCH)])
