"""LoRA files loaded by diffusers and PEFT into a U-Net and its text encoders: the side that quad's own reading of them is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.core.slots import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from quad.model.base.text.clip_pair import ClipPair


class PeftAdapters:
    """Adapters of a model's networks, one or several active at a time; a network that they do not reach is the base meanwhile."""

    def __init__(self, unet: Any, text_encoder: Any, files: Mapping[str, Path]) -> None:
        """Load every adapter; what PEFT does to the networks stays.

        Args:
            text_encoder: one, or a `ClipPair`.
            files: name -> LoRA file.

        Raises:
            UnsupportedError: diffusers finds nothing in a file.
        """
        pair = isinstance(text_encoder, ClipPair)
        texts = dict(zip((TEXT_ENCODER, TEXT_ENCODER_2), text_encoder.encoders if pair else (text_encoder,), strict=False))
        self._networks: dict[str, Any] = {UNET: unet, **texts}
        self._loader: Any = StableDiffusionXLLoraLoaderMixin if pair else StableDiffusionLoraLoaderMixin
        # Numbered, because diffusers takes `transform` in `transformer_blocks` for an adapter's name.
        self._names = {name: f"adapter_{i}" for i, name in enumerate(files)}
        self._reached: dict[str, set[str]] = {network: set() for network in self._networks}
        with warnings.catch_warnings():
            # PEFT warns of several adapters on one model: they are meant, and those that are asked for are active.
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            for name, file in files.items():
                self._load(name, file)

    def use(self, *names: str) -> None:
        """Make some adapters active, each with weight 1; without a name none is.

        Raises:
            UsageError: no adapter has such a name.
        """
        for name in names:
            if name not in self._names:
                raise UsageError(mismatch("adapter", f"one of {', '.join(self._names)}", name, "give its file"))
        for component, network in self._networks.items():
            reached = self._reached[component]
            active = [self._names[name] for name in names if name in reached]
            if component == UNET:
                _use_in_unet(network, active, bool(reached))
            else:
                _use_in_text(network, active, bool(reached))

    def _load(self, name: str, file: Path) -> None:
        loader, peft_name = self._loader, self._names[name]
        state, alphas, metadata = loader.lora_state_dict(
            file.parent, weight_name=file.name, unet_config=self._networks[UNET].config, return_lora_metadata=True
        )
        reached = {key.partition(".")[0] for key in state} & set(self._networks)
        if not reached:
            remedy = "save it as diffusers does"
            raise UnsupportedError(
                mismatch(f"adapter {name!r}, {file.name}", "keys that diffusers knows", next(iter(state), "none"), remedy)
            )
        for component in reached:
            network, options = self._networks[component], {"adapter_name": peft_name, "metadata": metadata}
            if component == UNET:
                loader.load_lora_into_unet(state, alphas, network, **options)
            else:
                loader.load_lora_into_text_encoder(state, alphas, network, prefix=component, **options)
            self._reached[component].add(name)


def _use_in_unet(unet: Any, active: list[str], reached: bool) -> None:
    if active:
        unet.enable_lora()
        unet.set_adapters(active)
    elif reached:
        unet.disable_lora()


def _use_in_text(text_encoder: Any, active: list[str], reached: bool) -> None:
    if active:
        text_encoder.enable_adapters()
        text_encoder.set_adapter(active)
    elif reached:
        text_encoder.disable_adapters()
