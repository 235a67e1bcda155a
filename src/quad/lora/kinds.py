"""The kinds of adapters that are read: how each is told from its tensors, and what it adds to a weight.

CONTRIBUTING.md lists the places of a new kind. Its function gets the layer, the module's tensors by role and the config, checks each tensor
with `floats` or `matrix` (shape, finite numbers), and returns either `LowRank`, where the file's own numbers are two matrices already,
or an `Update` (`quad.lora.low_rank`), which is cut at the smallest rank that keeps 99.9 % of its energy.

Keys, configs, refusals, `quad inspect`, conversion, DoRA over it and the notes of a build follow from the row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from quad.lora.adapter import LowRank
from quad.lora.config import AdapterConfig
from quad.lora.low_rank import Update
from quad.lora.target import TargetLayer, Tensors
from quad.lora.tensors import Role
from quad.lora.updates.full import full_update
from quad.lora.updates.loha import loha_update
from quad.lora.updates.lokr import lokr_update
from quad.lora.updates.lora import lora_pair

AND, WITH_DORA = " and ", " with DoRA"
Endings = tuple[tuple[str, Role], ...]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of adapter.

    Args:
        name: in notes, in refusals and of `quad inspect`.
        endings: regular expression of how a key ends -> the tensor's role.
        detect: whether the roles of one module's tensors make it one of this kind.
        update: what the module adds to its weight.
        peft_type: PEFT's name of it in configs that may come with such tensors.
        rank_axes: role and axis whose length is the module's rank; the first of these tensors that is there.
        written_out: role of a matrix without a rank of its own, which counts with its smaller side.
        either: roles of which a module has one or the other: of both, one would be passed over.
    """

    name: str
    endings: Endings
    detect: Callable[[Collection[Role]], bool]
    update: Callable[[TargetLayer, Tensors, AdapterConfig], LowRank | Update]
    peft_type: str = "LORA"
    rank_axes: tuple[tuple[Role, int], ...] = ()
    written_out: Role | None = None
    either: tuple[tuple[Role, Role], ...] = ()

    @property
    def roles(self) -> frozenset[Role]:
        """All that its tensors can be, those that any kind may have among them."""
        return frozenset(role for _, role in (*self.endings, *SHARED_ENDINGS))


def _plain(*roles: Role) -> Endings:
    """Endings that are the roles themselves."""
    return tuple((rf"\.{role}$", role) for role in roles)


def _has_pair(roles: Collection[Role]) -> bool:
    return "down" in roles or "up" in roles


# `lora_A.NAME.weight` is how PEFT itself calls it while the adapter is loaded.
_PAIR: Endings = (
    (r"\.lora_A(?:\.[\w-]+)?\.weight$", "down"),
    (r"\.lora_B(?:\.[\w-]+)?\.weight$", "up"),
    (r"\.lora_(?:down|linear_layer\.down)\.weight$", "down"),
    (r"\.lora_(?:up|linear_layer\.up)\.weight$", "up"),
    (r"[._]lora\.down\.weight$", "down"),
    (r"[._]lora\.up\.weight$", "up"),
)
KINDS = (
    Kind(
        name="LoRA",
        endings=_PAIR,
        detect=lambda roles: _has_pair(roles) and "mid" not in roles,
        update=lora_pair,
        rank_axes=(("down", 0),),
    ),
    Kind(
        name="Tucker",
        endings=(*_PAIR, (r"\.lora_mid\.weight$", "mid")),
        detect=lambda roles: _has_pair(roles) and "mid" in roles,
        update=lora_pair,
    ),
    Kind(
        name="LoHa",
        endings=_plain("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        detect=lambda roles: any(role.startswith("hada_") for role in roles),
        update=loha_update,
        peft_type="LOHA",
        rank_axes=(("hada_w1_b", 0),),
    ),
    Kind(
        name="LoKr",
        endings=_plain("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        detect=lambda roles: any(role.startswith("lokr_") for role in roles),
        update=lokr_update,
        peft_type="LOKR",
        rank_axes=(("lokr_w2_b", 0), ("lokr_w1_b", 0)),
        written_out="lokr_w2",
        either=(
            ("lokr_w1", "lokr_w1_a"),
            ("lokr_w1", "lokr_w1_b"),
            ("lokr_w2", "lokr_w2_a"),
            ("lokr_w2", "lokr_w2_b"),
            ("lokr_w2", "lokr_t2"),
        ),
    ),
    Kind(
        name="full weight difference",
        endings=_plain("diff"),
        detect=lambda roles: "diff" in roles,
        update=full_update,
        written_out="diff",
    ),
)
# Beside the tensors of any kind.
SHARED_ENDINGS: Endings = (
    (r"(?:[._]lora)?(?:\.down\.weight)?\.alpha$", "alpha"),
    (r"\.lora_magnitude_vector(?:\.[\w-]+){0,2}$", "magnitude"),
    *_plain("dora_scale"),
)
_MAGNITUDES = ("magnitude", "dora_scale")  # DoRA's norms, as PEFT and as LyCORIS call them

TEXTUAL_INVERSION = "textual inversion"
# A fragment of a key that only one kind of adapter has, and that kind's name: these are refused by name.
NOT_READ: tuple[tuple[str, str], ...] = (
    ("oft_", "OFT"),
    ("boft_", "BOFT"),
    ("shira_", "SHiRA"),
    ("ia3_", "IA3"),
    (".on_input", "IA3"),
    ("vera_lambda", "VeRA"),
    ("lora_embedding_", "embedding LoRA"),
    ("lora_B.bias", "LoRA with bias"),
    ("lora_up.bias", "LoRA with bias"),
    (".a1.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".set_weight", "full weights"),
    ("emb_params", TEXTUAL_INVERSION),
    ("string_to_param", TEXTUAL_INVERSION),
)

# What stands beside the matrices and changes no matrix: a fragment of a key and its name. No slot carries it.
BESIDE: tuple[tuple[str, str], ...] = (
    (".diff_b", "bias differences"),
    (".bias_values", "bias differences"),
    (".bias_indices", "bias differences"),
    (".bias_size", "bias differences"),
    (".w_norm", "differences of norms"),
    (".b_norm", "differences of norms"),
)

ENDINGS: Mapping[re.Pattern[str], Role] = {
    re.compile(ending): role for endings in (*(kind.endings for kind in KINDS), SHARED_ENDINGS) for ending, role in endings
}
# PEFT's name of a type -> ours, which is that of the first kind of this type.
PEFT_TYPES: Mapping[str, str] = {
    peft_type: next(kind.name for kind in KINDS if kind.peft_type == peft_type) for peft_type in dict.fromkeys(k.peft_type for k in KINDS)
}


def kinds_of(roles: Collection[Role]) -> list[Kind]:
    """The kinds that the roles of one module's tensors speak for: one, none, or several where they are mixed."""
    return [kind for kind in KINDS if kind.detect(roles)]


def is_ambiguous(kind: Kind, roles: Collection[Role]) -> bool:
    """Whether one of the tensors would be passed over: another says the same, or the kind has no such role."""
    twice = any(role in roles and other in roles for role, other in (*kind.either, _MAGNITUDES))
    return twice or not kind.roles.issuperset(roles)


def has_magnitude(roles: Collection[Role]) -> bool:
    """Whether the module is one of DoRA."""
    return any(role in roles for role in _MAGNITUDES)


def beside(key: str) -> str:
    """The name of what a tensor beside the matrices is, by its key; "" for any other tensor."""
    return next((name for fragment, name in BESIDE if fragment in key), "")


def kind_of(roles: Collection[Role]) -> str:
    """The name of the kind that the roles of one module's tensors make it; "" for none, several joined where they are mixed."""
    names = [kind.name for kind in kinds_of(roles)]
    return AND.join(names) + (WITH_DORA if names and has_magnitude(roles) else "")


def own_rank(shapes: Mapping[Role, tuple[int, ...]]) -> int:
    """The rank of a module's tensors in the file; 0 where nothing tells it.

    A matrix that is written out counts with its smaller side. What a module gets when its kind is converted can be more or less.
    """
    for role, axis in (pair for kind in KINDS for pair in kind.rank_axes):
        if shapes.get(role):
            return shapes[role][axis]
    written_out = (kind.written_out for kind in KINDS if kind.written_out is not None)
    return next((min(shapes[role][:2]) for role in written_out if len(shapes.get(role, ())) > 1), 0)
