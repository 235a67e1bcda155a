"""Which kind of adapter a module's tensors are, and their rank, told from names and shapes alone: a device without torch can ask too."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from quad.lora.keys import Role

# The shape that tells a module's own rank, and the axis it is on: the first of these tensors that is there.
_RANK_AT: tuple[tuple[Role, int], ...] = (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0))
_WRITTEN_OUT: tuple[Role, ...] = ("lokr_w2", "diff")

LORA, TUCKER, LOHA, LOKR, FULL = "LoRA", "Tucker", "LoHa", "LoKr", "full weight difference"
WITH_DORA, AND = " with DoRA", " and "


def kind_of(roles: Collection[Role]) -> str:
    """What the roles of one module's tensors make it; "" where none of them holds weights, several kinds joined where they are mixed."""
    kinds = {
        LORA: bool({"down", "up"} & set(roles)),
        LOHA: any(role.startswith("hada_") for role in roles),
        LOKR: any(role.startswith("lokr_") for role in roles),
        FULL: "diff" in roles,
    }
    found = [kind for kind, there in kinds.items() if there]
    if found[:1] == [LORA] and "mid" in roles:
        found[0] = TUCKER
    decomposed = bool({"magnitude", "dora_scale"} & set(roles))
    return AND.join(found) + (WITH_DORA if found and decomposed else "")


def own_rank(shapes: Mapping[Role, tuple[int, ...]]) -> int:
    """The rank of a module's tensors in the file; 0 where nothing tells it.

    A matrix that is written out counts with its smaller side. What a module gets when its kind is converted can be more or less.
    """
    for role, axis in _RANK_AT:
        if shapes.get(role):
            return shapes[role][axis]
    return next((min(shapes[role][:2]) for role in _WRITTEN_OUT if len(shapes.get(role, ())) > 1), 0)
