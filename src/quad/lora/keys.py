"""The names of LoRA tensors, in every dialect: diffusers, PEFT, kohya and LyCORIS, old diffusers. Source: conventions.md.

A name is a prefix (which component, and whether dots became underscores), a module path and a role. What the path means in a network is
`quad.lora.module_names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from quad.core.errors import UnsupportedError, mismatch

Component = Literal["unet", "text_encoder"]
Role = Literal[
    "down", "up", "mid", "alpha", "magnitude", "dora_scale", "diff",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
]  # fmt: skip
ROLES: tuple[Role, ...] = get_args(Role)

# A fragment of a key that only one kind of adapter has, and that kind's name.
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (".diff_b", "bias differences"),
    ("oft_", "OFT"),
    ("boft_", "BOFT"),
    ("ia3_", "IA3"),
    (".on_input", "IA3"),
    ("vera_lambda", "VeRA"),
    ("lora_embedding_", "embedding LoRA"),
    ("lora_B.bias", "LoRA with bias"),
    ("lora_up.bias", "LoRA with bias"),
    (".a1.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".w_norm", "weights of norms"),
    (".b_norm", "weights of norms"),
    (".set_weight", "full weights"),
    ("emb_params", "textual inversion"),
    ("string_to_param", "textual inversion"),
)

# `lora_A.NAME.weight` is how PEFT itself calls it while the adapter is loaded.
_PATTERNS: tuple[tuple[re.Pattern[str], Role | None], ...] = (
    (re.compile(r"\.lora_A(?:\.[\w-]+)?\.weight$"), "down"),
    (re.compile(r"\.lora_B(?:\.[\w-]+)?\.weight$"), "up"),
    (re.compile(r"\.lora_(?:down|linear_layer\.down)\.weight$"), "down"),
    (re.compile(r"\.lora_(?:up|linear_layer\.up)\.weight$"), "up"),
    (re.compile(r"[._]lora\.down\.weight$"), "down"),
    (re.compile(r"[._]lora\.up\.weight$"), "up"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"(?:[._]lora)?(?:\.down\.weight)?\.alpha$"), "alpha"),
    (re.compile(r"\.lora_magnitude_vector(?:\.[\w-]+){0,2}$"), "magnitude"),
    (re.compile(r"\.(dora_scale|diff|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?)$"), None),
)

_PEFT = "base_model.model."
_MODEL_PREFIXES = (_PEFT, "model.diffusion_model.", "diffusion_model.")
# A transformer that denoises stands where the U-Net stands.
_DOTTED: tuple[tuple[str, Component], ...] = (("unet.", "unet"), ("transformer.", "unet"), ("text_encoder.", "text_encoder"))
_FLAT: tuple[tuple[str, Component | None], ...] = (
    ("lora_unet_", "unet"),
    ("lora_transformer_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lycoris_", None),
)
_LONGEST_SHOWN = 160
_TEXT_PATHS = ("text_model.", "text_model_", "encoder.layers.")
# Old diffusers called the text encoder's projections as it called the U-Net's.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OLD_TEXT_KEY = re.compile(r"(?<=\.self_attn\.)(to_q|to_k|to_v|to_out)$")


@dataclass(frozen=True)
class LoraKey:
    """One tensor's place.

    Args:
        path: of the module, as the file spells it, without prefix.
        flat: kohya's underscores are still in the path.
        component: the model that the prefix names; None where the file does not say.
    """

    path: str
    role: Role
    flat: bool = False
    component: Component | None = None


def shown(key: str) -> str:
    """A stranger's name as part of one line: no control characters, no more than a line holds."""
    short = key if len(key) <= _LONGEST_SHOWN else key[: _LONGEST_SHOWN - 3] + "..."
    return short if short.isprintable() else repr(short)


def is_text_key(key: LoraKey) -> bool:
    """Whether the name can only mean a text encoder."""
    return key.component == "text_encoder" or (key.component is None and key.path.startswith(_TEXT_PATHS))


def refuse_other_kinds(keys: Iterable[str]) -> None:
    """Refuse, by name, every kind of adapter that is none of those read.

    Raises:
        UnsupportedError: with the kind and the first key that shows it.
    """
    for key in keys:
        for fragment, kind in _OTHER_KINDS:
            if fragment in key:
                raise UnsupportedError(
                    mismatch(
                        f"key '{shown(key)}'", "LoRA, LoHa, LoKr, DoRA or weight differences", kind, "convert it to LoRA, or leave it out"
                    )
                )


def _split(key: str) -> tuple[str, Role] | None:
    """The module's name with its prefixes, and the role."""
    for pattern, role in _PATTERNS:
        if found := pattern.search(key):
            if role is None and found[1] not in ROLES:
                return None
            return key[: found.start()], role or cast("Role", found[1])
    return None


def _component(name: str) -> tuple[str, Component | None]:
    """A module's path without what names the model it is in, and that model."""
    component: Component | None = None
    for prefix, named in ((_PEFT, None), *_DOTTED, *((prefix, None) for prefix in _MODEL_PREFIXES)):
        if name.startswith(prefix):
            name, component = name.removeprefix(prefix), named or component
    return name, component


def parse_key(key: str) -> LoraKey | None:
    """What a tensor's name says, or None if it is no LoRA name in any dialect we know."""
    if (parts := _split(key)) is None:
        return None
    name, role = parts
    path, component = _component(name)
    for prefix, flat_component in _FLAT:
        if path.startswith(prefix):
            return LoraKey(path.removeprefix(prefix), role, True, flat_component)
    path = path.replace(".processor.", ".")
    if old := _OLD_TEXT_KEY.search(path):
        path = path[: old.start()] + _OLD_TEXT[old[1]]
    # Old diffusers called the output projection by its list, not by its layer.
    return LoraKey(path + ".0" if path.endswith(".to_out") else path, role, False, component)
