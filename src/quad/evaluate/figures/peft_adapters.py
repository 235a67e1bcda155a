"""LoRA files loaded by diffusers and PEFT into a U-Net and a text encoder: the side that quad's own reading of them is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin

from quad.core.errors import UnsupportedError, UsageError, mismatch

_UNET, _TEXT = StableDiffusionLoraLoaderMixin.unet_name, StableDiffusionLoraLoaderMixin.text_encoder_name


class PeftAdapters:
    """Adapters of one pair of networks, one or several active at a time; a network that they do not reach is the base meanwhile."""

    def __init__(self, unet: Any, text_encoder: Any, files: Mapping[str, Path]) -> None:
        """Load every adapter; what PEFT does to the networks stays.

        Args:
            files: name -> LoRA file.

        Raises:
            UnsupportedError: diffusers finds nothing in a file.
        """
        self._unet, self._text_encoder = unet, text_encoder
        # Numbered, because diffusers takes `transform` in `transformer_blocks` for an adapter's name.
        self._names = {name: f"adapter_{i}" for i, name in enumerate(files)}
        self._reached: dict[str, set[str]] = {_UNET: set(), _TEXT: set()}
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
        in_unet, in_text = ([self._names[name] for name in names if name in self._reached[network]] for network in (_UNET, _TEXT))
        if in_unet:
            self._unet.enable_lora()
            self._unet.set_adapters(in_unet)
        elif self._reached[_UNET]:
            self._unet.disable_lora()
        if in_text:
            self._text_encoder.enable_adapters()
            self._text_encoder.set_adapter(in_text)
        elif self._reached[_TEXT]:
            self._text_encoder.disable_adapters()

    def _load(self, name: str, file: Path) -> None:
        loader, peft_name = StableDiffusionLoraLoaderMixin, self._names[name]
        state, alphas, metadata = loader.lora_state_dict(
            file.parent, weight_name=file.name, unet_config=self._unet.config, return_lora_metadata=True
        )
        reached = {key.partition(".")[0] for key in state} & {_UNET, _TEXT}
        if not reached:
            remedy = "save it as diffusers does"
            raise UnsupportedError(
                mismatch(f"adapter {name!r}, {file.name}", "keys that diffusers knows", next(iter(state), "none"), remedy)
            )
        if _UNET in reached:
            loader.load_lora_into_unet(state, alphas, self._unet, adapter_name=peft_name, metadata=metadata)
        if _TEXT in reached:
            loader.load_lora_into_text_encoder(state, alphas, self._text_encoder, prefix=_TEXT, adapter_name=peft_name, metadata=metadata)
        for network in reached:
            self._reached[network].add(name)
