"""Consistency distillation: the teacher's runs, the function that is the same along them, and the file that comes out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from quad.core.sampling import AdapterDefaults
from quad.lora.file import defaults_of
from quad.model.adapters import read_adapter
from quad.runtime.request import TEXT_TO_IMAGE
from quad.zoo.reference import ADAPTER_FILE
from quad.zoo.train import base, speed, text, trajectories, vae
from quad.zoo.train.adapters import CONVOLUTION, TIME
from quad.zoo.train.frozen import Frozen
from quad.zoo.train.trajectories import ABARS, TIMESTEPS, Conditions, Teacher
from quad.zoo.train.writers import save_diffusers, save_lycoris


class _Oracle(nn.Module):
    """The best answer where the only picture there is has one value everywhere, which the words say."""

    def forward(self, channels: Tensor, t: int, hidden: Tensor) -> SimpleNamespace:
        abar = ABARS[TIMESTEPS.index(t)]
        clean = hidden.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        eps = (channels[:, :4] - abar.sqrt() * clean) / (1 - abar).sqrt()
        return SimpleNamespace(sample=abar.sqrt() * eps - (1 - abar).sqrt() * clean)


def _model(unet: nn.Module, words: base.Words) -> Frozen:
    numbers = {"shift": np.zeros(4, np.float32), "scale": np.ones(4, np.float32)}
    return Frozen(unet=unet, words=words, tokenizer=text.new_tokenizer(), vae=vae.new_vae(), **numbers)


def _number(ids: Tensor, sizes: Tensor | None) -> Tensor:
    """Words as a number: 1, or -1 for none at all."""
    return torch.where(ids[:, 1:2] > 2, 1.0, -1.0).unsqueeze(2)


@pytest.mark.parametrize(("guidance", "clean"), [(1.0, 1.0), (2.0, 3.0)])
def test_a_run_leads_to_the_guided_picture_and_f_knows_it_from_the_beginning(guidance: float, clean: float) -> None:
    given = Conditions(condition=torch.zeros(2, 4, 16, 16), mask=torch.ones(2, 1, 16, 16), ids=torch.full((2, 4), 5))
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    states = trajectories.run_teacher(_model(_Oracle(), _number), given, guidance, noise)
    torch.testing.assert_close(states[:, -1], torch.full_like(noise, clean), atol=1e-4, rtol=0)
    for place, abar in enumerate(ABARS):
        on_line = abar.sqrt().float() * clean + (1 - abar).sqrt().float() * noise
        torch.testing.assert_close(states[:, place], on_line, atol=1e-3, rtol=0)
    for place in range(len(TIMESTEPS)):
        x, abar = states[:, place], ABARS[place]
        v = (abar.sqrt() * noise - (1 - abar).sqrt() * clean).float()
        f = speed.consistency(x, v, torch.full((2,), place))
        torch.testing.assert_close(f, states[:, -1], atol=1e-3, rtol=0)


def test_the_runs_pass_all_timesteps_of_fewer_steps() -> None:
    for steps in (1, 2, 4, 8):
        assert set(speed.lcm_timesteps(speed.NoiseSchedule(), steps)) <= set(TIMESTEPS)
    places = speed.draw_places(np.random.default_rng(0), 32)[8:]
    assert {TIMESTEPS[place] for place in places} == {999, 759, 499, 259}


def _small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return base.new_unet((16, 16, 16)).requires_grad_(False)


def test_two_steps_of_the_stage_leave_a_lora_that_says_how_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in speed.SAMPLES_OF_A_CHUNK:
        monkeypatch.setitem(speed.SAMPLES_OF_A_CHUNK, task, 2)
    monkeypatch.setattr(speed, "BATCH", 4)
    student, weights = _small_unet(), dict(_small_unet().named_parameters())
    teacher = Teacher(
        model=_model(_small_unet(), base.last_states(text.new_text_encoder().eval())),
        weights=dict.fromkeys(speed.SHARES, weights),
        guidance={TEXT_TO_IMAGE: 2.0},
        out=tmp_path,
    )
    speed.train_speed((tmp_path, tmp_path / "speed"), student, teacher, 2)
    file = tmp_path / "speed" / ADAPTER_FILE
    assert defaults_of(file) == AdapterDefaults(sampler="lcm:4", guidance=1.0)
    with safe_open(file, "np") as written:
        keys = list(written.keys())
    assert all(any(f"{target}.lora_A" in key for key in keys) for target in (*CONVOLUTION, *TIME))
    adapter = read_adapter("speed", file, _small_unet())
    assert sum(pair.power for pair in adapter.weights.values()) > 0
    assert len(list(tmp_path.glob("speed_*.npz"))) == len({speed.Runs(teacher, speed.SHARES).batch(step, 4)[0] for step in range(2)})


def test_files_of_both_dialects_are_one_lora(tmp_path: Path) -> None:
    unet = _small_unet()
    speed.add_speed(unet)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    save_diffusers(unet, "speed", tmp_path / "a")
    save_lycoris(unet, "speed", tmp_path / "b")
    a, b = (read_adapter("m", tmp_path / name / ADAPTER_FILE, _small_unet()).weights for name in ("a", "b"))
    assert a.keys() == b.keys()
    for path, pair in a.items():
        np.testing.assert_array_equal(pair.a, b[path].a)
        np.testing.assert_array_equal(pair.b, b[path].b)
