"""How many bits each weight and activation site gets: data, first rule that fits wins. Source: method.md section 5, step 0.

Slots are not in the table: they are signed, symmetric, per tensor, of the width that the build asks for (`UnifyOptions.lora_bits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Shape = Literal["channel", "symmetric", "asymmetric"]


@dataclass(frozen=True)
class Rule:
    """Encoding of the tensors whose component and name fit.

    Args:
        component, name: shell patterns.
        bits: 8 or 16.
        shape: `channel` (signed symmetric per output channel), `symmetric` (signed, per tensor), `asymmetric` (unsigned, per tensor).
        fixed: a range known beforehand.
    """

    component: str
    name: str
    bits: int
    shape: Shape
    fixed: tuple[float, float] | None = None


# The first and last convolution and the time embedding see or make the picture itself; they are small, so 16 bits cost next to nothing.
_FINE_WEIGHTS = (
    ("*", "*conv_in.weight"),
    ("*", "*conv_out.weight"),
    ("vae_encoder", "encoder.layers.0.weight"),  # AutoencoderTiny's conv_in
    ("unet", "time_embedding.*.weight"),
)

RULES: tuple[Rule, ...] = (
    *(Rule(component, name, 16, "channel") for component, name in _FINE_WEIGHTS),
    Rule("*", "*.weight", 8, "channel"),
    # Softmax gives [0, 1]. The scale 1/65536 is the one that Qualcomm's softmax takes (targets.md); 1 itself becomes 65535/65536.
    Rule("*", "*.p", 16, "asymmetric", (0.0, 65535.0 / 65536.0)),
    Rule("*", "*", 16, "asymmetric"),
)


def rule_for(component: str, name: str, rules: tuple[Rule, ...] = RULES) -> Rule | None:
    """The first rule that fits, None if the tensor stays in float."""
    return next((rule for rule in rules if fnmatchcase(component, rule.component) and fnmatchcase(name, rule.name)), None)
