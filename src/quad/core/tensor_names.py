"""The grammar of tensor names: a tensor is named by what it is, not by where a compiler puts it.

    name = path "." role

| role | path of | tensor |
|---|---|---|
| `weight`, `bias` | a module | parameters of a Linear, Conv2d or token table |
| `in` | a module | the activation that a Linear or Conv2d reads; behind a split skip concat, the decoder's channels of it |
| `in_skip` | a module | the encoder's channels of it |
| `q`, `k`, `v`, `p` | an attention | operands of its two matmuls; p is what softmax gives |
| `lora_A`, `lora_B` | a slot | its two graph inputs, down `(rank, in, *kernel)` and up `(out, rank)` |
| `lora_mid` | a slot | `A x` |
| `lora_scale` | a slot | in an adapter's file, of normalised slots: the scale of each rank channel `(rank,)` |
| `lora_scales` | a component | the graph input that holds the scales of all its slots, one after the other |
| `gain` | a module | smoothing scales of its input channels, in a bundle's corrections file |
| `rounding` | a module | 1 where its weight is rounded with compensation, in a bundle's corrections file |

In a Q/DQ graph the nodes that quantize tensor T and dequantize it are `T/Q` and `T/DQ`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

_QUANTIZE, _DEQUANTIZE = "/Q", "/DQ"


class Role(StrEnum):
    """The part of a tensor in its module, attention or slot."""

    WEIGHT = "weight"
    BIAS = "bias"
    INPUT = "in"
    SKIP_INPUT = "in_skip"
    QUERY = "q"
    KEY = "k"
    VALUE = "v"
    PROBABILITY = "p"
    LORA_A = "lora_A"
    LORA_B = "lora_B"
    LORA_MID = "lora_mid"
    LORA_SCALE = "lora_scale"
    LORA_SCALES = "lora_scales"
    GAIN = "gain"
    ROUNDING = "rounding"


LAYER_INPUTS = (Role.INPUT, Role.SKIP_INPUT)
ATTENTION_ROLES = (Role.QUERY, Role.KEY, Role.VALUE, Role.PROBABILITY)
CONSTANT_ROLES = (Role.WEIGHT, Role.LORA_A, Role.LORA_B, Role.LORA_SCALES)  # encoded, but no activations
_ROLES = {role.value: role for role in Role}
_REMEMBERED = 2**14  # names of slots, which a switch asks for by the thousand


@dataclass(frozen=True)
class TensorName:
    """A tensor's name in its two parts; `str()` gives it whole."""

    path: str
    role: Role

    def __str__(self) -> str:
        return f"{self.path}.{self.role}"


def parse(name: str) -> TensorName:
    """The two parts of a name.

    Raises:
        ValueError: it is not of this grammar.
    """
    role = role_of(name)
    if role is None:
        raise ValueError(f"{name!r} is no tensor name: expected <path>.{'|'.join(Role)}")
    return TensorName(name.removesuffix(f".{role}"), role)


def role_of(name: str) -> Role | None:
    """The role in a name; None for one that is not of this grammar, such as an edge that a compiler named."""
    _, dot, role = name.rpartition(".")
    return _ROLES.get(role) if dot else None


def paths_with(role: Role, names: Iterable[str]) -> list[str]:
    """Paths of those names that have this role, in their order."""
    return [parse(name).path for name in names if role_of(name) is role]


def weight_name(path: str) -> str:
    """The weight of a module."""
    return str(TensorName(path, Role.WEIGHT))


def bias_name(path: str) -> str:
    """The bias of a module."""
    return str(TensorName(path, Role.BIAS))


def input_name(path: str) -> str:
    """The input of a module; behind a split skip concat, the decoder's channels of it."""
    return str(TensorName(path, Role.INPUT))


def skip_input_name(path: str) -> str:
    """The encoder's channels of what a module reads behind a split skip concat."""
    return str(TensorName(path, Role.SKIP_INPUT))


def attention_names(path: str) -> tuple[str, ...]:
    """The operands of an attention's matmuls: q, k, v, p."""
    return tuple(str(TensorName(path, role)) for role in ATTENTION_ROLES)


@lru_cache(_REMEMBERED)
def lora_a_name(path: str) -> str:
    """Graph input A of a slot."""
    return str(TensorName(path, Role.LORA_A))


@lru_cache(_REMEMBERED)
def lora_b_name(path: str) -> str:
    """Graph input B of a slot."""
    return str(TensorName(path, Role.LORA_B))


def lora_mid_name(path: str) -> str:
    """`A x` of a slot."""
    return str(TensorName(path, Role.LORA_MID))


@lru_cache(_REMEMBERED)
def lora_scale_name(path: str) -> str:
    """The scales of a normalised slot's rank channels, in an adapter's file."""
    return str(TensorName(path, Role.LORA_SCALE))


def lora_scales_name(component: str) -> str:
    """The graph input with the scales of all slots of a component."""
    return str(TensorName(component, Role.LORA_SCALES))


def gain_name(path: str) -> str:
    """Smoothing scales of a module's input channels."""
    return str(TensorName(path, Role.GAIN))


def rounding_name(path: str) -> str:
    """How a module's weight is rounded."""
    return str(TensorName(path, Role.ROUNDING))


def quantize_node(tensor: str) -> str:
    """The QuantizeLinear of a tensor."""
    return f"{tensor}{_QUANTIZE}"


def dequantize_node(tensor: str) -> str:
    """The DequantizeLinear of a tensor."""
    return f"{tensor}{_DEQUANTIZE}"


def quantized_tensor(node: str) -> str | None:
    """The tensor whose QuantizeLinear a node is by its name; None for another node."""
    return node.removesuffix(_QUANTIZE) if node.endswith(_QUANTIZE) else None
