"""Teacher calls: U-Net calls with the float network's outputs, and how near another network comes to them.

Source: docs/method.md sections 1 and 7.

| symbol | here |
|---|---|
| y, y~ | output of the float network and of the quantized one, both with the adapter |
| e, e~ | effect: the output with the adapter less that with the zero adapter, float and quantized |

Their SQNR and the effect's gain are those of `quad.core.decibels`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quad.core.decibels import EffectEnergy, sqnr_db
from quad.core.errors import InputError, mismatch
from quad.quantize.observe.batched_calls import SlotArrays, TensorInputs, batched_forward
from quad.quantize.observe.probes import Probe, teacher_outputs

# Of an output's energy: so far two float runs of one network may be apart that add in another order, alone and in a batch for instance.
_ROUNDING = 1e-10


@dataclass(frozen=True, kw_only=True)
class TeacherCall:
    """One U-Net call and what it should give.

    Args:
        run: of the probe; calls of one run are not independent.
        inputs: `sample (B, C, h, w)`, `timestep (B,)`, `encoder_hidden_states (B, L, D)`.
        target: the float network's output with the adapter, `(B, c, h, w)`; of a denoising example, the exact answer.
        without: the float network's output with the zero adapter, the same shape.
    """

    run: int
    inputs: TensorInputs
    target: Tensor
    without: Tensor


@dataclass(frozen=True)
class Fidelity:
    """How near a quantized network comes to the float one with one adapter; the effect is None where the adapter has none."""

    output_db: float
    effect_db: float | None
    effect_gain: float | None

    def to_json(self) -> dict[str, float | None]:
        """`output_db`, `effect_db`, `effect_gain`."""
        return {"output_db": self.output_db, "effect_db": self.effect_db, "effect_gain": self.effect_gain}


def call_teacher(teacher: nn.Module | None, slots: SlotArrays, probes: Sequence[Probe]) -> list[TeacherCall]:
    """The float network's outputs for the probes, with the adapter and without.

    Args:
        teacher: float slotted network, the one that probes were recorded with; None where they know all its answers.
        slots: float slot inputs of the original adapter.

    Raises:
        InputError: there is no probe.
    """
    if not probes:
        raise InputError(mismatch("alignment", "at least one probe of the adapter", "none", "give calibration samples"))
    inputs = [probe.tensors() for probe in probes]
    answers = [(torch.tensor(p.expected), torch.tensor(p.without)) for p in probes if p.expected is not None and p.without is not None]
    if len(answers) == len(probes):
        target, without = [y for y, _ in answers], [y0 for _, y0 in answers]
    else:
        assert teacher is not None
        with torch.no_grad():
            target, without = teacher_outputs(teacher, probes, slots), batched_forward(teacher, inputs, {})
    return [
        TeacherCall(run=probe.run, inputs=x, target=y, without=y0) for probe, x, y, y0 in zip(probes, inputs, target, without, strict=True)
    ]


def fingerprint(calls: Sequence[TeacherCall]) -> str:
    """SHA-256 of all that goes into and comes out of the calls, 64 hex digits: other samples or another teacher give another."""
    sha256 = hashlib.sha256()
    for call in calls:
        for tensor in (*call.inputs, call.target, call.without):
            sha256.update(tensor.detach().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def fidelity(calls: Sequence[TeacherCall], outputs: Sequence[Tensor], bases: Sequence[Tensor]) -> Fidelity:
    """Pooled over all calls.

    Args:
        outputs, bases: what the quantized network gives for each call, with the adapter and with the zero adapter.
    """
    signal = noise = 0.0
    pooled = EffectEnergy()
    for call, output, base in zip(calls, outputs, bases, strict=True):
        y, y_hat = call.target.double(), output.double()
        signal, noise = signal + float(y.square().sum()), noise + float((y_hat - y).square().sum())
        e, e_hat = y - call.without.double(), y_hat - base.double()
        pooled += EffectEnergy(true=float(e.square().sum()), cross=float((e * e_hat).sum()), error=float((e_hat - e).square().sum()))
    if pooled.true <= _ROUNDING * signal:
        return Fidelity(sqnr_db(signal, noise), None, None)
    return Fidelity(sqnr_db(signal, noise), pooled.sqnr_db(), pooled.gain)
