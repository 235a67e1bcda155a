"""How many bits each weight and activation site gets: data, first rule that fits wins. Source: docs/method.md section 5, step 0.

Slots are not in the table: they are signed, symmetric, per tensor, of the width that the build asks for (`UnifyOptions.lora_bits`), and
B has a margin (`quad.core.margins.SLOT_B`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from quad.core.margins import HEADROOM, LORA_MID, NO_MARGIN, Margin
from quad.core.slots import TEXT_ENCODER
from quad.core.tensor_names import (
    ATTENTION_ROLES,
    Role,
    TensorName,
    attention_names,
    input_name,
    lora_mid_name,
    parse,
    role_of,
    weight_name,
)

Shape = Literal["channel", "column", "symmetric", "centred", "asymmetric", "signed"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Encoding of the tensors whose component and name fit.

    Args:
        component, name: shell patterns.
        bits: 8 or 16.
        shape: `channel` (signed symmetric per output channel), `column` (the same of each column of a table), `symmetric` (signed, per
            tensor), `centred` (the same on all integers of the type, as engines clip, the lowest too), `asymmetric` (unsigned, per tensor),
            `signed` (with a zero point, per tensor); a weight that is not per channel takes its smallest and its largest value as range.
        fixed: a range known beforehand.
        margin: of the encoding over the range that was chosen.
    """

    component: str
    name: str
    bits: int
    shape: Shape
    fixed: tuple[float, float] | None = None
    margin: Margin = NO_MARGIN


# The first and last layer and the time embedding see or make the picture itself; they are small, so 16 bits cost next to nothing.
_FINE_WEIGHTS = (
    ("*", weight_name("*conv_in")),
    ("*", weight_name("*conv_out")),
    ("vae_encoder", weight_name("encoder.layers.0")),  # AutoencoderTiny's conv_in
    ("unet", weight_name("time_embedding.*")),
    ("unet", weight_name("pos_embed.proj")),  # a transformer's
    ("unet", weight_name("proj_out")),
    ("unet", weight_name("adaln_single.emb.*")),
)

_BYTE, _FLOAT_BITS = 8, 32

# The outlying dimensions of a token table are columns: with a range for each of them a byte an entry is enough (ADR 59).
_TOKEN_TABLES = (weight_name("*token_embedding"), weight_name("*shared"))  # CLIP's and T5's

_ANY_ACTIVATION = Rule(component="*", name="*", bits=16, shape="asymmetric")

RULES: tuple[Rule, ...] = (
    *(Rule(component=TEXT_ENCODER, name=name, bits=8, shape="column") for name in _TOKEN_TABLES),
    *(Rule(component=component, name=name, bits=16, shape="channel") for component, name in _FINE_WEIGHTS),
    Rule(component="*", name=weight_name("*"), bits=8, shape="channel"),
    # Softmax gives [0, 1]. The scale 1/65536 is the one that Qualcomm's softmax takes (docs/targets.md); 1 itself becomes 65535/65536.
    Rule(component="*", name=str(TensorName("*", Role.PROBABILITY)), bits=16, shape="asymmetric", fixed=(0.0, 65535.0 / 65536.0)),
    Rule(component="*", name=lora_mid_name("*"), bits=16, shape="asymmetric", margin=LORA_MID[16]),
    _ANY_ACTIVATION,
)

# Mixed precision (docs/method.md section 5, step 7) is for the network that runs at every step; the other three run once a picture.
MIXED_COMPONENT = "unet"

# Sites that stay at 16 bits as long as others are left to go to 8. Source: docs/method.md section 5, step 0.
KEEP_16_BITS = (
    input_name("conv_in"),
    input_name("conv_out"),
    *attention_names("*"),
    "time_embedding.*",
    input_name("*.time_emb_proj"),
    input_name("pos_embed.proj"),
    input_name("proj_out"),
    "adaln_single.*",
    lora_mid_name("*"),
)

# What cross-attention reads of the text.
TEXT_SITES = tuple(input_name(f"*.attn2.{layer}") for layer in ("to_k", "to_v"))

# Values of an attention that are an adapter's as much as the base's: they grow with its strength.
_ATTENTION_SITES = (*(name for name in attention_names("*") if role_of(name) is not Role.PROBABILITY), input_name("*.to_out.0"))


def reads_text(name: str) -> bool:
    """Is the site the text features, begin-of-text token and all."""
    return any(fnmatchcase(name, pattern) for pattern in TEXT_SITES)


def keeps_16_bits(name: str) -> bool:
    """Is the site one that only a share beyond all others takes to 8 bits."""
    return any(fnmatchcase(name, pattern) for pattern in KEEP_16_BITS)


def turn_of(name: str, *, products: bool = False) -> int:
    """The turn in which a site goes to 8 bits, 0 first.

    Args:
        products: the target multiplies attention's operands as integers: they and A x come before the first and last layers.
    """
    if not (products and keeps_16_bits(name)):
        return int(keeps_16_bits(name))
    return 1 if role_of(name) in (*ATTENTION_ROLES, Role.LORA_MID) else 2


def product_of(name: str) -> str:
    """The product that a site is an operand of, both of which an integer kernel needs; the name itself of another site."""
    role = role_of(name)
    if role in (Role.QUERY, Role.KEY):
        return f"{parse(name).path} {Role.QUERY}{Role.KEY}"
    return f"{parse(name).path} {Role.PROBABILITY}{Role.VALUE}" if role in (Role.PROBABILITY, Role.VALUE) else name


def with_eight_bit(sites: Iterable[str], rules: tuple[Rule, ...] = RULES, *, products: bool = False) -> tuple[Rule, ...]:
    """The rules with these activation sites of the U-Net at 8 bits.

    Args:
        products: attention's operands as integer products take them: q, k and v centred, and what softmax gives in the range that it has,
            for its values over many tokens are far below 1/255.
    """
    return (*((_operand(name) if products else None) or _eight_bit(name) for name in sites), *rules)


def with_wider_mid(factor: float, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules with the ranges of A x that many times as wide."""

    def wider(rule: Rule) -> Rule:
        margin = Margin(rule.margin.factor * factor - 1.0, rule.margin.mirrored)
        return replace(rule, margin=margin) if rule.margin in LORA_MID.values() else rule

    return tuple(map(wider, rules))


def with_headroom(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules with room in what an attention of the U-Net computes from its slots' outputs at 16 bits: q, k, v, and their product."""
    roomy = [replace(_ANY_ACTIVATION, component=MIXED_COMPONENT, name=name, margin=HEADROOM) for name in _ATTENTION_SITES]
    return tuple(each for rule in rules for each in ((*roomy, rule) if rule == _ANY_ACTIVATION else (rule,)))


def with_fine_tables(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules for a target that takes no table by columns: one range for all of it, at 16 bits, which is nearly exact."""
    return tuple(replace(rule, bits=16, shape="asymmetric") if rule.shape == "column" else rule for rule in rules)


def signed_rules(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules for a target whose integers are signed: 16 bits are symmetric there, 8 bits keep their zero point.

    A softmax gets the scale 1/32768, the one that LiteRT's takes: 1 itself becomes 32767/32768.
    """

    def signed(rule: Rule) -> Rule:
        if rule.shape != "asymmetric":
            return rule
        if rule.bits == _BYTE:
            return replace(rule, shape="signed")
        return replace(rule, shape="symmetric", fixed=None if rule.fixed is None else (0.0, 32767.0 / 32768.0))

    return tuple(map(signed, rules))


def _operand(name: str) -> Rule | None:
    """The rule of an operand of an integer product; None for another site."""
    shapes: dict[Role | None, Shape] = {Role.PROBABILITY: "asymmetric", **dict.fromkeys((Role.QUERY, Role.KEY, Role.VALUE), "centred")}
    shape = shapes.get(role_of(name))
    return None if shape is None else Rule(component=MIXED_COMPONENT, name=name, bits=_BYTE, shape=shape)


def _eight_bit(name: str) -> Rule:
    """Softmax keeps its known range, 1 included; A x has a margin even here."""
    bounds = (0.0, 1.0) if role_of(name) is Role.PROBABILITY else None
    margin = LORA_MID[8] if role_of(name) is Role.LORA_MID else NO_MARGIN
    return Rule(component=MIXED_COMPONENT, name=name, bits=8, shape="asymmetric", fixed=bounds, margin=margin)


def weight_bits(component: str, path: str) -> int:
    """Bits of each number of a weight: those of its rule, 32 where it stays in float."""
    rule = rule_for(component, weight_name(path))
    return _FLOAT_BITS if rule is None else rule.bits


def rule_for(component: str, name: str, rules: tuple[Rule, ...] = RULES) -> Rule | None:
    """The first rule that fits, None if the tensor stays in float."""
    return next((rule for rule in rules if fnmatchcase(component, rule.component) and fnmatchcase(name, rule.name)), None)
