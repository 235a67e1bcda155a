"""Batches that the recipe feeds its networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers.schedule import whole_timesteps
from quad.zoo import samples, world
from quad.zoo.train import adapters, base, cache, text


def _cached(count: int = 4) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    cached = {}
    for kind, draw in cache.KINDS.items():
        drawn = [draw(i) for i in range(count)]
        latents = rng.normal(size=(count, len(drawn[0][0]), 4, 16, 16)).astype(np.float16)
        cached[kind] = {"latents": latents, "masks": np.stack([np.stack(d[1]) for d in drawn]), "prompts": np.array([d[2] for d in drawn])}
    return cached


def test_the_condition_channels_are_alive_in_the_mixture() -> None:
    batch = base.Mixture(_cached(), np.zeros(4), np.ones(4)).batch(0, 256)
    blank = (batch.condition == 0).flatten(1).all(1)
    share = base.MIXTURE["plain"] + base.MIXTURE["face"]
    assert float(blank.float().mean()) == pytest.approx(share, abs=0.1)
    assert (batch.mask[blank] == 1).all()
    partly = (batch.mask.flatten(1).mean(1) > 0) & (batch.mask.flatten(1).mean(1) < 1)
    assert partly.any()
    assert not (partly & blank).any()


def test_every_word_of_the_grammar_has_an_id_of_its_own() -> None:
    tokenizer = text.new_tokenizer()
    unknown = tokenizer.token_to_id("<unk>")
    ids = {word: tokenizer.token_to_id(word) for word in world.VOCABULARY}
    assert None not in ids.values()
    assert unknown not in ids.values()
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("task", samples.TASKS)
def test_prompts_are_known_and_fit_the_text_model(task: str) -> None:
    tokenizer = text.new_tokenizer()
    for seed in range(60):
        encoded = tokenizer.encode(samples.sample(task, seed).prompt)
        assert tokenizer.token_to_id("<unk>") not in encoded.ids
        assert encoded.ids.count(tokenizer.token_to_id("<eos>")) == 1
        assert len(encoded.ids) == text.LENGTH


def test_adapters_see_their_samplers_own_timesteps() -> None:
    sampler_steps = set(whole_timesteps("ddim", NoiseSchedule(), 4, SamplerSettings()))
    timesteps = adapters.own_timesteps(4, 64)[:32]
    assert {int(t) for t in timesteps} == sampler_steps


def test_the_loss_weight_of_the_last_step_does_not_vanish() -> None:
    abar = base.new_scheduler().alphas_cumprod.double()
    weight = base.v_weight(abar)
    assert float(abar[-1]) < 1e-6
    assert float(weight[-1]) == pytest.approx(1.0, abs=1e-3)
    assert torch.all(weight > 0)
    assert torch.all(weight <= 1 + 1e-9)
