"""The names of LoRA tensors, in every dialect: diffusers, PEFT, kohya, old diffusers. Source: conventions.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from quad.core.errors import UnsupportedError, mismatch

Role = Literal["down", "up", "alpha"]

# A fragment of a key that only one kind of adapter has, and that kind's name.
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid", "Tucker-decomposed LoCon"),
    ("oft_", "OFT"),
    ("ia3_", "IA3"),
    ("lora_embedding_", "embedding LoRA"),
    ("lora_B.bias", "LoRA with bias"),
    ("lora_up.bias", "LoRA with bias"),
    (".diff", "full weight differences"),
)

_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"\.lora_A(\.default)?\.weight$"), "down"),
    (re.compile(r"\.lora_B(\.default)?\.weight$"), "up"),
    (re.compile(r"\.lora_(?:down|linear_layer\.down)\.weight$"), "down"),
    (re.compile(r"\.lora_(?:up|linear_layer\.up)\.weight$"), "up"),
    (re.compile(r"[._]lora\.down\.weight$"), "down"),
    (re.compile(r"[._]lora\.up\.weight$"), "up"),
    (re.compile(r"(?:[._]lora)?(?:\.down\.weight)?\.alpha$"), "alpha"),
)

_KOHYA_UNET = "lora_unet_"
_TEXT = re.compile(r"^(text_encoder(_\d)?\.|text_model\.|lora_te\d?_)")


@dataclass(frozen=True)
class LoraKey:
    """One tensor's place: module path in the U-Net (kohya's underscores still in it where `flat`) and its role."""

    path: str
    role: Role
    flat: bool = False

    def resolve(self, paths: Mapping[str, str]) -> str | None:
        """The network's own path, from `network_paths`; None if it has no such module."""
        return paths.get(self.path.replace(".", "_") if self.flat else self.path)


def network_paths(paths: Iterable[str]) -> dict[str, str]:
    """Every spelling of a module path, dotted and kohya's underscored, to the path itself."""
    known = list(paths)
    return {path.replace(".", "_"): path for path in known} | {path: path for path in known}


def refuse_other_kinds(keys: Iterable[str]) -> None:
    """Refuse, by name, every adapter kind that is not plain LoRA, and text-encoder LoRA.

    Raises:
        UnsupportedError: with the kind and the first key that shows it.
    """
    for key in keys:
        for fragment, kind in _OTHER_KINDS:
            if fragment in key:
                raise UnsupportedError(
                    mismatch(f"key {key!r}", "plain LoRA (two matrices a module)", kind, "convert it to LoRA, or leave it out")
                )
        if _TEXT.match(key.removeprefix("base_model.model.")):
            raise UnsupportedError(
                mismatch(
                    f"key {key!r}", "U-Net LoRA keys", "text-encoder LoRA", "strip the text-encoder keys; quad has slots in the U-Net only"
                )
            )


def parse_key(key: str) -> LoraKey | None:
    """What a tensor's name says, or None if it is no LoRA name in any dialect we know."""
    for pattern, role in _ROLES:
        if found := pattern.search(key):
            path = key[: found.start()].removeprefix("base_model.model.").removeprefix("unet.")
            if path.startswith(_KOHYA_UNET):
                return LoraKey(path.removeprefix(_KOHYA_UNET), role, flat=True)
            path = path.replace(".processor.", ".")
            # Old diffusers called the output projection by its list, not by its layer.
            return LoraKey(path + ".0" if path.endswith(".to_out") else path, role)
    return None
