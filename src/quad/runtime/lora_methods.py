"""Adapters of a pipeline, by the names of diffusers' methods."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.manifest import AdapterManifest
from quad.core.storage.pack import MANIFEST_KEY
from quad.core.storage.reading import is_directory, is_file
from quad.core.storage.tensor_file import open_header
from quad.runtime.adapter_switch import AdapterSwitch
from quad.runtime.adapters.block_weights import Weight
from quad.runtime.adapters.store import StoreMetrics
from quad.runtime.arguments import path_of, texts

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class LoraMethods:
    """The part of a pipeline that knows adapters.

    Until `set_adapters` or `disable_lora` is called, each call uses its task's own adapter; after that, what they set.

    Args:
        switch: the adapters, for those who register them while pictures are made.
    """

    switch: AdapterSwitch

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that `set_adapters` takes."""
        return self.switch.store.names

    def adapter_manifest(self, name: str) -> AdapterManifest:
        """The manifest of an adapter.

        Raises:
            UsageError: no adapter has that name.
        """
        return self.switch.store.manifest(name)

    def adapter_metrics(self) -> StoreMetrics:
        """Memory of its adapters, and how they came there."""
        return self.switch.store.metrics()

    def get_active_adapters(self) -> list[str]:
        """Adapters bound at this moment; empty for the base."""
        return list(self.switch.active)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Component -> the adapters that change it, active or not."""
        listed: dict[str, list[str]] = {}
        for name in self.adapters:
            for component in self.switch.store.components(name):
                listed.setdefault(component, []).append(name)
        return listed

    def set_adapters(self, adapter_names: str | Sequence[str], weights: Any = None, adapter_weights: Any = None) -> None:
        """Use these adapters from now on; several are added on the integer lattice.

        Args:
            adapter_names: one name or several.
            weights: one for all, or a sequence of one each; 1 where not given. A number, or numbers by block as in diffusers:
                `{"unet": {"down": 0.5, "mid": 1, "up": {"block_1": [0.2, 0.4]}}, "text_encoder": 0.8}`.
            adapter_weights: the same, by diffusers' name.

        Raises:
            UsageError: an unknown name, or a wrong weight.
            CompatibilityError: their ranks together exceed a slot's.
        """
        if weights is not None and adapter_weights is not None:
            raise UsageError(mismatch("set_adapters", "weights or adapter_weights", "both", "leave one out"))
        if isinstance(adapter_names, Mapping) or not isinstance(adapter_names, Iterable):
            raise UsageError(mismatch("set_adapters", "names of adapters", repr(adapter_names), "give weights beside them: weights="))
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.switch.set_adapters(names, adapter_weights if weights is None else weights)

    def disable_lora(self) -> None:
        """Use the base from now on: zero buffers, its output bit for bit."""
        self.switch.disable()

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None, weight_name: str | None = None) -> str:
        """Register a pack or an adapter directory; `set_adapters` makes it active.

        Args:
            weight_name: the pack's file in the directory `path`.

        Returns:
            The name it was given.

        Raises:
            InputError: there is nothing, or a LoRA that was not packed for this bundle.
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        given = path_of("path", path)
        place = given if weight_name is None else given / path_of("weight_name", weight_name)
        _require_packed(place, str(path))
        return self.switch.load(place, adapter_name)

    def unload(self, adapter_name: str | None = None) -> None:
        """Unregister an adapter, or all of them; the base rules where one of them was active.

        Raises:
            UsageError: an unknown name.
        """
        self.switch.unload(adapter_name)

    def unload_lora_weights(self) -> None:
        """Unregister all adapters that were loaded, and use the base."""
        self.unload()

    def delete_adapters(self, adapter_names: str | Iterable[str]) -> None:
        """Unregister some adapters; the bundle's own stay, since they are files of it, and are no longer active.

        Raises:
            UsageError: an unknown name.
        """
        names = texts("adapter_names", adapter_names)
        for name in names:
            self.adapter_manifest(name)
        for name in names:
            self.unload(name)


def shown_weight(weight: Weight) -> str:
    """As it is written behind an adapter's name: nothing for 1."""
    return "" if weight == 1 else f":{weight:g}"


def _require_packed(place: Path, given: str) -> None:
    """Refuse a LoRA in floats, and a hub id.

    Raises:
        InputError: says how it becomes a pack.
    """
    if is_directory(place):
        return
    if not is_file(place):
        if _HUB_ID.fullmatch(given):
            way = "fetch it and pack it: quad adapt BUNDLE NAME=FILE -o NAME.qpack"
            raise InputError(mismatch("load_lora_weights", "a pack for this bundle", f"{given!r}, a hub id or no file", way))
        return
    if place.suffix == ".safetensors" and MANIFEST_KEY not in open_header(place).metadata:
        way = f"pack it where quad[build] is: quad adapt BUNDLE NAME={place.name} -o NAME.qpack"
        raise InputError(mismatch(str(place), "a pack for this bundle", "a LoRA in floats", way))
