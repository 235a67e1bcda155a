"""The profile: the encodings of every weight, slot and activation, one for all adapters. Source: docs/method.md section 3.

Tensors are named as `quad.core.tensor_names` says.
"""

from __future__ import annotations

import msgspec

from quad.core.digests import digest
from quad.core.encoding import Encoding


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Encodings by component and tensor name, with how they came to be.

    Args:
        encodings: component -> tensor name -> encoding.
        mode: pooled | anchor | unified, or float where nothing is quantized.
        anchor: the adapter whose ranges rule, where mode is `anchor`.
        parents: digests of what the profile was made from (base, adapters, slots).
        gains: component -> slot path -> what equalization multiplied the input channels of the slot's layer by. An adapter must have its
            A multiplied likewise before it is packed.
    """

    encodings: dict[str, dict[str, Encoding]]
    mode: str = "pooled"
    anchor: str | None = None
    parents: dict[str, str] = {}
    gains: dict[str, dict[str, tuple[float, ...]]] = {}

    @property
    def digest(self) -> str:
        return digest(self)

    def component(self, name: str) -> dict[str, Encoding]:
        return self.encodings.get(name, {})
