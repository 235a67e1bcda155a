"""A teacher, a student and their calls, all tiny: what the tests of alignment share."""

from __future__ import annotations

import numpy as np
import torch

from quad.core.slots import SlotTable
from quad.lora.fit.integers import integer_slots
from quad.lora.read import FloatAdapter
from quad.model.slots.layers import weights_of
from quad.quantize.distill.distill import Distilled, TeacherStudent, distill
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.teacher_calls import TeacherCall
from quad.quantize.encodings.rules import RULES, with_eight_bit
from quad.quantize.observe.probes import Probe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from tests.quantize.conftest import Tiny

RUNS = 4


def make_pair(tiny: Tiny, bits: int = 8) -> TeacherStudent:
    """Activations and LoRA weights at 8 bits, where enough is lost for training to win some back, or at 16."""
    rules = with_eight_bit(tiny.statistics.sites["unet"]) if bits == 8 else RULES
    options = UnifyOptions(lora_bits=bits, rules=rules)
    profile = unify(tiny.statistics, {"unet": weights_of(tiny.network)}, tiny.table, tiny.adapters, options)
    return TeacherStudent(teacher=tiny.network, student=tiny.network, table=integer_slots(tiny.table, bits), profile=profile)


def make_probes(adapter: str, runs: int = RUNS, seed: int = 0) -> list[Probe]:
    """Two calls a run on random inputs."""
    rng = np.random.default_rng(seed)
    shapes = {"sample": (1, 9, 8, 8), "encoder_hidden_states": (1, 5, 16)}

    def call(run: int, timestep: float) -> Probe:
        inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        return Probe(source=adapter, task="sketch", run=run, inputs={**inputs, "timestep": np.array([timestep], np.float32)}, sigma_t=0.5)

    return [call(run, timestep) for run in range(runs) for timestep in (900.0, 500.0)]


class Watched:
    """One distillation and what its progress told."""

    def __init__(
        self, pair: TeacherStudent, adapter: FloatAdapter, options: DistillOptions, examples: tuple[TeacherCall, ...] = ()
    ) -> None:
        self.told: list[tuple[int, float]] = []
        self.result: Distilled = distill(
            pair, adapter, make_probes(adapter.name), options, examples, lambda step, loss: self.told.append((step, loss))
        )

    def same_integers(self, other: Watched) -> bool:
        ours, theirs = self.result.integers, other.result.integers
        return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def state_of(network: torch.nn.Module) -> dict[str, tuple[torch.Tensor, bool, bool]]:
    """Every parameter's value, whether it trains, and whether it holds a gradient."""
    return {name: (p.detach().clone(), p.requires_grad, p.grad is None) for name, p in network.named_parameters()}


def own_inputs(adapter: FloatAdapter, table: SlotTable) -> set[str]:
    """Names of the slot inputs that the adapter fills."""
    return {name for slot in table.slots if slot.path in adapter.weights for name in (slot.a_name, slot.b_name)}
