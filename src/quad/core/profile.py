"""The profile: the encodings of every weight, slot and activation, one for all adapters. Source: docs/method.md section 3.

Where one set of activation ranges would cost some adapter too much, adapters are in groups, each with its own set; weights and slots have
one encoding in all of them, so that any adapter's integers mean the same whichever group's graph they are bound to.
Tensors are named as `quad.core.tensor_names` says.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from quad.core.digests import digest
from quad.core.encoding import Encoding
from quad.core.precision import FLOAT
from quad.core.tensor_names import CONSTANT_ROLES, role_of

MOST_GROUPS = 16


class GroupRanges(msgspec.Struct, frozen=True, kw_only=True):
    """The ranges of a further group of adapters.

    Args:
        encodings: component -> tensor name -> encoding, of the activations whose encoding is another than the first group's.
        mode, anchor: see `Profile`.
    """

    encodings: dict[str, dict[str, Encoding]]
    mode: str
    anchor: str | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Encodings by component and tensor name, with how they came to be.

    Args:
        encodings: component -> tensor name -> encoding.
        mode: pooled | anchor | unified, or float where no activation and no slot is quantized; weights may be.
        anchor: the adapter whose ranges rule, where mode is `anchor`.
        parents: digests of what the profile was made from (base, adapters, slots).
        gains: component -> slot path -> what equalization multiplied the input channels of the slot's layer by. An adapter must have its
            A multiplied likewise before it is packed.
        groups: of further groups of adapters; unset, one set of encodings holds for all.
    """

    encodings: dict[str, dict[str, Encoding]]
    mode: str = "pooled"
    anchor: str | None = None
    parents: dict[str, str] = {}
    gains: dict[str, dict[str, tuple[float, ...]]] = {}
    groups: Annotated[tuple[GroupRanges, ...], msgspec.Meta(min_length=1, max_length=MOST_GROUPS - 1)] | msgspec.UnsetType = msgspec.UNSET

    @property
    def digest(self) -> str:
        return digest(self)

    @property
    def has_float_slots(self) -> bool:
        """Adapters are floats, and so is what they meet."""
        return self.mode == FLOAT or not self.encodings

    @property
    def group_count(self) -> int:
        """How many groups of adapters there are."""
        return 1 + len(self.groups or ())

    def of_group(self, group: int) -> Profile:
        """The profile that holds for one group alone, counted from 0; with one group it is this one."""
        alone = msgspec.structs.replace(self, groups=msgspec.UNSET)
        if group == 0:
            return alone
        other = (self.groups or ())[group - 1]
        names = {**self.encodings, **other.encodings}
        encodings = {name: {**self.component(name), **other.encodings.get(name, {})} for name in names}
        return msgspec.structs.replace(alone, encodings=encodings, mode=other.mode, anchor=other.anchor)

    def component(self, name: str) -> dict[str, Encoding]:
        return self.encodings.get(name, {})

    def has_eight_bit_activations(self, component: str) -> bool:
        """One activation of it at least has 8 bits; weights and slots do not count."""
        return any(encoding.bits == 8 and role_of(name) not in CONSTANT_ROLES for name, encoding in self.component(component).items())
