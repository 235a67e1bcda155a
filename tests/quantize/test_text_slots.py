"""Slots of the text encoder on their way to integers: calibrated, probed and aligned with the adapter bound, trained never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from quad.core.errors import BackendError
from quad.core.profile import Profile
from quad.core.slots import TEXT_ENCODER, UNET, SlotTable
from quad.lora.fit.integers import balanced_inputs, dequantize_adapter, integer_slots, quantize_adapter
from quad.lora.read import FloatAdapter, LowRank
from quad.model.base.open import Base
from quad.model.slots.layers import weights_of
from quad.model.slots.network import Slotted, slot_networks
from quad.quantize.correct.simulate import simulated
from quad.quantize.distill.distill import TeacherStudent, distill
from quad.quantize.distill.options import DistillOptions
from quad.quantize.observe.calibrate import CalibrationSample, calibrate, component_networks
from quad.quantize.observe.observers import Statistics
from quad.quantize.observe.probes import Probe, ProbeOptions, record_probes
from quad.quantize.observe.torch_session import bind_slots, torch_sessions
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.quantize.profile.sensitivity import score_adapters
from quad.quantize.profile.shared_ranges import own_profiles
from quad.runtime.conditioning.tokenizer import Tokenizer

QUERY, MLP = "text_encoder.encoder.layers.0.self_attn.q_proj", "text_encoder.encoder.layers.0.mlp.fc1"
WORDS = CalibrationSample(task="text-to-image", prompt="a house", adapter="words")


def text_weights(seed: int, rank: int) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return rng.normal(scale=0.3, size=shape).astype(np.float32)

    return {QUERY: LowRank(draw(rank, 16), draw(16, rank)), MLP: LowRank(draw(rank, 16), draw(16, rank))}


@dataclass(frozen=True)
class World:
    """The tiny model with three adapters: `faint` in the U-Net alone, `loud` in both networks, `words` in the text encoder alone."""

    base: Base
    slotted: Slotted
    networks: dict[str, torch.nn.Module]
    adapters: tuple[FloatAdapter, ...]
    samples: list[CalibrationSample]
    statistics: Statistics

    @property
    def table(self) -> SlotTable:
        return self.slotted.table

    @property
    def profile(self) -> Profile:
        weights = {name: weights_of(network) for name, network in self.networks.items()}
        return unify(self.statistics, weights, integer_slots(self.table, 16), self.adapters)

    def probes(self) -> dict[str, list[Probe]]:
        return record_probes(self.base, self.networks, self.table, self.adapters, self.samples, ProbeOptions(per_adapter=None))

    def text(self, prompt: str, slots: dict[str, Any]) -> np.ndarray:
        ids = torch.from_numpy(Tokenizer(self.base.tokenizer, self.base.text)(prompt).ids)
        with torch.no_grad():
            return self.networks["text_encoder"](ids, slots={name: torch.from_numpy(array) for name, array in slots.items()}).numpy()


@pytest.fixture(scope="module")
def world(base: Base, tiny: Any, samples: list[CalibrationSample]) -> World:
    faint, loud = tiny.adapters
    adapters = (
        faint,
        replace(loud, weights={**loud.weights, **text_weights(1, 3)}),
        FloatAdapter(name="words", weights=text_weights(2, 2), rank=2, digest="digest of words"),
    )
    slotted = slot_networks(base.unet, base.text_encoder, adapters)
    networks, everything = component_networks(base, slotted.unet, slotted.text_encoder), [*samples, WORDS, WORDS]
    statistics = calibrate(base, networks, slotted.table, adapters, everything)
    return World(base, slotted, networks, adapters, everything, statistics)


def test_calibration_sees_the_text_encoder_with_each_adapter_and_the_profile_has_its_slots(world: World) -> None:
    sites = world.statistics.sites[TEXT_ENCODER]
    assert set(sites[f"{QUERY}.in"]) == {"base", "faint", "loud", "words"}
    assert set(sites[f"{QUERY}.lora_mid"]) == {"faint", "loud", "words"}
    assert world.statistics.density(TEXT_ENCODER, f"{QUERY}.lora_mid", ["faint"]).high == 0.0  # nothing of it is in the text encoder
    assert world.statistics.density(TEXT_ENCODER, f"{QUERY}.lora_mid", ["words"]).high > 0.0
    text = world.profile.component(TEXT_ENCODER)
    for path in (QUERY, MLP):
        assert {f"{path}.lora_A", f"{path}.lora_B", f"{path}.lora_mid", f"{path}.weight", f"{path}.in"} <= text.keys()
    assert not any(name.startswith("text_encoder.") for name in world.profile.component(UNET))


def test_a_run_of_the_base_is_the_base_whatever_ran_before(world: World) -> None:
    alone = calibrate(world.base, world.networks, world.table, (), world.samples[:1])
    after = calibrate(world.base, world.networks, world.table, world.adapters[2:], [WORDS, world.samples[0]])
    name = "text_encoder.encoder.layers.0.mlp.fc2.in"  # behind both slots
    base, again, words = (
        found.density(TEXT_ENCODER, name, [source]) for found, source in ((alone, "base"), (after, "base"), (after, "words"))
    )
    assert (base.low, base.high) == (again.low, again.high) != (words.low, words.high)


def test_probes_read_hidden_states_made_with_the_adapter(world: World) -> None:
    found = world.probes()["words"][0].inputs["encoder_hidden_states"]
    ours = world.text("a house", balanced_inputs(world.adapters[2], world.table))
    np.testing.assert_array_equal(found[-1:], ours)
    assert np.abs(ours - world.text("a house", {})).max() > 0.1


def test_the_simulated_text_encoder_carries_the_adapter(world: World) -> None:
    table, profile = integer_slots(world.table, 16), world.profile
    for adapter in world.adapters[1:]:
        slots = dequantize_adapter(quantize_adapter(adapter, table, profile), table, profile)
        with simulated(world.networks[TEXT_ENCODER], profile, TEXT_ENCODER):
            effect = world.text("a house", slots) - world.text("a house", {})
        true = world.text("a house", balanced_inputs(adapter, table)) - world.text("a house", {})
        assert 0 < np.square(effect - true).mean() < 1e-3 * np.square(true).mean()


def test_an_adapter_of_the_text_encoder_alone_is_scored(world: World) -> None:
    table = integer_slots(world.table, 16)
    profiles = own_profiles(world.profile, world.statistics, table, world.adapters, UnifyOptions())
    found = score_adapters(world.slotted.unet, table, world.adapters, profiles, world.probes())
    assert set(found.ranking) == {"faint", "loud", "words"}
    assert all(np.isfinite(score.qss) and score.qss > 0 for score in found.scores.values())


@pytest.mark.parametrize("name", ["loud", "words"])
def test_alignment_rescales_the_text_part_and_trains_the_unets_alone(name: str, world: World) -> None:
    adapter = next(one for one in world.adapters if one.name == name)
    pair = TeacherStudent(
        teacher=world.slotted.unet, student=world.slotted.unet, table=integer_slots(world.table, 16), profile=world.profile
    )
    found = distill(pair, adapter, world.probes()[name], DistillOptions(steps=2, rate=0.05, every=1))
    rescaled = quantize_adapter(adapter, pair.table, pair.profile)
    assert found.integers.keys() == rescaled.keys()
    moved = {key for key, array in found.integers.items() if not np.array_equal(array, rescaled[key])}
    assert not any(key.startswith("text_encoder.") for key in moved)
    assert any(found.integers[key].any() for key in rescaled if key.startswith("text_encoder."))
    assert found.alignment.steps == (2 if name == "loud" else 0)
    assert found.alignment.after_rescale.output_db > 30.0
    assert (found.alignment.after_rescale.effect_db is None) == (name == "words")  # of a U-Net call, given the hidden states


def test_slot_inputs_that_no_network_reads_are_refused(world: World, tiny: Any, make_adapter: Callable[..., FloatAdapter]) -> None:
    sessions = torch_sessions(world.base, component_networks(world.base, tiny.network), tiny.table)
    bind_slots(sessions, balanced_inputs(make_adapter("ink", 3, 2, (0.1, 0.1)), tiny.table))
    with pytest.raises(BackendError, match=r"torch sessions: expected a network for every slot input, found none for text_encoder\."):
        bind_slots(sessions, balanced_inputs(world.adapters[2], world.table))
