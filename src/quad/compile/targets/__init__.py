"""Targets: what a chip and its toolchain can run, as data. One JSON file per target, read into `Target`.

To add a target:

1. `NAME.json` here, with the fields of `Target`; `--target NAME` finds it by its file. Its passes are names of `passes.PASSES`.
2. Its rows in `docs/targets.md`, `docs/cli.md` and `docs/passes.md`; `tests/test_how_to_add.py` fails where one is missing.
3. Only where a vendor's compiler makes its files: a module with `open_backend`, and its row of `quad.compile.backend.BACKENDS`, which the
   table names as `backend`; options that only this vendor reads go to `options` and, as fields, to `quad.build.request.BuildRequest`.
4. Only where no engine here runs its files: an engine, see `quad.runtime.engines.engine`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

import msgspec
from msgspec.structs import replace

from quad.core.encoding import Encoding
from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.core.precision import eight_bit_percent, precision_kind
from quad.core.profile import Profile
from quad.core.tensor_names import CONSTANT_ROLES, role_of

_BYTE, _BYTES, _FINE, _SIGNED_FOUR = 8, "int8", "int16", "int4"
LAYERS = ("Conv", "MatMul", "Gemm")  # operators with a weight that is multiplied


class WeightScheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an operator's constant operand may be stored."""

    dtypes: tuple[str, ...]
    per_channel: bool


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A capability table.

    Args:
        engines: engines that run its graphs, best first.
        precisions: what `--precision` may ask for; `mixed` stands for every `mixed:P`.
        default_precision: what a build has where nobody says: the fast one that its chip has kernels for.
        slot_dtypes, activation_dtypes: element types of slot inputs and of activations between Q and DQ.
        bias: element type of biases.
        int16_largest: magnitude of signed 16-bit integers, where the chip counts fewer than the type has.
        int16_operand: which operand of a product of two computed values is signed and symmetric, 16 bits: 0 or 1.
        weights: operator type -> scheme of its weight; an operator that is not named keeps float weights.
        constants: where every value of a graph is an integer: operator type -> operand index -> `weight` (the profile's), `bias` (int32 at
            s_x s_w), or an element type whose range is the constant's own; `*` stands for all others. Empty where floats may stay.
        integer: operator types with an integer kernel for a constant 8-bit weight. Where a profile has 8-bit activations, those that such
            an operator reads become Q/DQ and all others stay float. Without them, and where no operator is named, every one becomes Q/DQ
            and is computed as it is written, see `for_profile`.
        products: a product of two computed values of 8 bits, attention's, has an integer kernel too where the right one of them is signed
            with the zero point 0.
        passes: rewrites of its graphs by name, in order, see `quad.compile.passes.PASSES`.
        float_passes: those behind them in graphs without 8-bit activations, whose weights become floats as they run.
        backend: what makes its files, see `quad.compile.backend.BACKENDS`.
        vendor: who makes the chip, in the words of an error.
        options: options of a build that no target but this one, or its like, reads.
        long_prompts: its U-Net may read several chunks of tokens, and leave those out of attention that a prompt has not.
        text_vectors: the text encoder's graph has the input `embeddings`, through which textual inversions enter.
        reuse: its U-Net may be written a second time without its deep part, see `quad.compile.shallow`.
        signed: activations are signed integers: those of 16 bits symmetric, those of 8 with a zero point.
    """

    name: str
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    default_precision: str
    slot_dtypes: tuple[str, ...]
    activation_dtypes: tuple[str, ...]
    bias: str
    int16_largest: int | msgspec.UnsetType = msgspec.UNSET
    int16_operand: int = 1
    weights: dict[str, WeightScheme]
    constants: dict[str, dict[str, str]] = {}
    integer: tuple[str, ...] = ()
    products: bool = False
    passes: tuple[str, ...] = ()
    float_passes: tuple[str, ...] = ()
    backend: str = "onnx"
    vendor: str = ""
    options: tuple[str, ...] = ()
    long_prompts: bool = False
    text_vectors: bool = False
    reuse: bool = False
    signed: bool = False

    @property
    def integers_only(self) -> bool:
        """Every value of its graphs is an integer, unless the precision is one of floats."""
        return bool(self.constants)

    @property
    def takes_fine_weights(self) -> bool:
        """Its layers take constant weights of 16 bits."""
        return any(_FINE in scheme.dtypes for op_type, scheme in self.weights.items() if op_type in LAYERS)

    @property
    def takes_byte_tables(self) -> bool:
        """Its lookups read tables of bytes with a scale for each column."""
        scheme = self.weights.get("Gather")
        return scheme is not None and scheme.per_channel and _BYTES in scheme.dtypes

    @property
    def signed_four_bits(self) -> bool:
        """Its weights of 4 bits are signed and symmetric, not with a zero point."""
        return all(_SIGNED_FOUR in self.weights[op_type].dtypes for op_type in LAYERS if op_type in self.weights)

    def check_weight(self, op_type: str, name: str, encoding: Encoding) -> None:
        """Refuse a weight's encoding that an operator cannot read.

        Raises:
            UnsupportedError: the operator has no scheme for it.
        """
        scheme = self.weights.get(op_type)
        if scheme is None or encoding.stored_as not in scheme.dtypes or (encoding.axis is not None and not scheme.per_channel):
            expected, actual = f"a weight scheme of {op_type} on target {self.name}", f"{encoding.stored_as}, axis {encoding.axis}"
            raise UnsupportedError(mismatch(name, expected, actual, "choose another --precision"))

    def for_profile(self, profile: Profile) -> Target:
        """The table as this profile needs it: nothing has an integer kernel where no activation has 8 bits."""
        components = profile.encodings.values()
        if any(is_eight_bit_site(*item) for encodings in components for item in encodings.items()):
            return self
        return replace(self, integer=(), products=False, passes=(*self.passes, *self.float_passes), float_passes=())


def is_eight_bit_site(name: str, encoding: Encoding) -> bool:
    """Is this entry of a profile an activation of 8 bits, not a weight or a slot."""
    return encoding.bits == _BYTE and role_of(name) not in CONSTANT_ROLES


def target_names() -> tuple[str, ...]:
    """Every target whose table ships, sorted."""
    return tuple(sorted(entry.name[:-5] for entry in resources.files(__name__).iterdir() if entry.name.endswith(".json")))


def load_target(name: str) -> Target:
    """The table of a target.

    Raises:
        UsageError: no such target.
    """
    if name not in target_names():
        raise UsageError(mismatch("--target", " | ".join(target_names()), name, "choose one of these"))
    return msgspec.json.decode(resources.files(__name__).joinpath(f"{name}.json").read_bytes(), type=Target)


def check_options(target: Target, options: Iterable[str]) -> None:
    """Refuse options that another target reads: this one would pass them over without a word.

    Raises:
        UsageError: names the targets that read it.
    """
    for name in options:
        if name not in target.options:
            readers = [table for table in map(load_target, target_names()) if name in table.options]
            vendors = " or ".join(sorted({table.vendor for table in readers}))
            then = f"leave it out or choose --target {' | '.join(table.name for table in readers)}"
            raise UsageError(mismatch(f"--{name.replace('_', '-')}", f"a target that compiles for {vendors}", target.name, then))


def check_precision(target: Target, precision: str) -> None:
    """Refuse what the target cannot run, naming it.

    Raises:
        UnsupportedError: a precision that this target does not run.
        UsageError: a word that is no precision, or a share outside 0 to 100.
    """
    eight_bit_percent(precision)
    if precision_kind(precision) not in target.precisions:
        expected = f"{' | '.join(target.precisions)} for target {target.name}"
        raise UnsupportedError(mismatch("--precision", expected, precision, "choose one of these"))
