"""Denoising examples: the noise of the schedule around the true picture, and the answer that leads exactly back to it (Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from quad.core.errors import InputError
from quad.core.manifest import NoiseSchedule
from quad.model.base.open import Base
from quad.quantize.distill.denoising_examples import denoising_examples
from quad.quantize.distill.teacher_calls import TeacherCall
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probes import Probe, ProbeOptions, record_probes
from quad.quantize.observe.torch_session import torch_sessions
from quad.runtime.engines.engine import Session
from quad.runtime.samplers.schedule import alphas_cumprod

TRUTH = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
# z_0 out of x_t and the answer, given sqrt(abar) and sigma.
CLEAN: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "v_prediction": lambda x, v, signal, sigma: signal * x - sigma * v,
    "epsilon": lambda x, eps, signal, sigma: (x - sigma * eps) / signal,
    "sample": lambda x, z0, signal, sigma: z0,
}


@pytest.fixture(scope="module")
def encoder(base: Base, tiny: Any) -> Session:
    return torch_sessions(base, component_networks(base, tiny.network), tiny.table)["vae_encoder"]


@pytest.fixture(scope="module")
def latent(encoder: Session) -> Tensor:
    """z_0 of the true picture, `(1, 4, 8, 8)`."""
    pixels = TRUTH.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0
    return torch.from_numpy(encoder.run({"image": pixels}))


@pytest.fixture(scope="module")
def probes(base: Base, tiny: Any, samples: list[CalibrationSample]) -> dict[str, list[Probe]]:
    return record_probes(base, component_networks(base, tiny.network), tiny.table, tiny.adapters, samples, ProbeOptions(per_adapter=None))


def of_adapter(samples: list[CalibrationSample], task: str, truth: np.ndarray | None = TRUTH) -> list[CalibrationSample]:
    return [replace(sample, truth=truth) for sample in samples if sample.task == task]


def mix(base: Base, probe: Probe) -> tuple[float, float]:
    """sqrt(abar) and sigma at the probe's timestep, from the schedule itself."""
    abar = float(alphas_cumprod(base.schedule)[round(probe.timestep)])
    return abar**0.5, (1.0 - abar) ** 0.5


def noise_of(base: Base, example: TeacherCall, probe: Probe, latent: Tensor) -> Tensor:
    signal, sigma = mix(base, probe)
    return (example.inputs[0][:, :4] - signal * latent) / sigma


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_the_answer_leads_back_to_the_true_picture(
    prediction: Any, base: Base, encoder: Session, latent: Tensor, probes: dict[str, list[Probe]], samples: list[CalibrationSample]
) -> None:  # fmt: skip
    asked = replace(base, schedule=msgspec.structs.replace(base.schedule, prediction=prediction))
    examples = denoising_examples(asked, encoder, of_adapter(samples, "sketch"), probes["loud"])
    checked = 0
    for example, probe in zip(examples, probes["loud"], strict=True):
        signal, sigma = mix(base, probe)
        if signal == 0.0 and prediction == "epsilon":
            continue  # all noise: nothing leads back
        found = CLEAN[prediction](example.inputs[0][:, :4], example.target, signal, sigma)
        torch.testing.assert_close(found, latent, rtol=0, atol=1e-5 / max(signal, 1e-2))
        checked += 1
    assert checked


def test_the_picture_is_noised_as_the_schedule_says(
    base: Base, encoder: Session, latent: Tensor, probes: dict[str, list[Probe]], samples: list[CalibrationSample]
) -> None:
    """What is left without the picture is white: its mean and spread are those of 256 draws, four standard errors wide."""
    examples = denoising_examples(base, encoder, of_adapter(samples, "removal"), probes["faint"])
    assert len(examples) == len(probes["faint"]) == 2
    for example, probe in zip(examples, probes["faint"], strict=True):
        noise = noise_of(base, example, probe, latent)
        assert abs(noise.mean().item()) < 4 / 16
        assert abs(noise.std().item() - 1.0) < 4 / (2 * 256) ** 0.5


def test_condition_time_and_text_are_the_probes_own(
    base: Base, encoder: Session, probes: dict[str, list[Probe]], samples: list[CalibrationSample]
) -> None:
    before = [{name: values.copy() for name, values in probe.inputs.items()} for probe in probes["base"]]
    examples = denoising_examples(base, encoder, of_adapter(samples, "text-to-image"), probes["base"])
    for example, probe, kept in zip(examples, probes["base"], before, strict=True):
        sample, timestep, text = example.inputs
        assert len(sample) == len(text) == len(example.target) == 1  # of a guided call, the side with the prompt
        np.testing.assert_array_equal(sample[:, 4:].numpy(), probe.inputs["sample"][-1:, 4:])
        np.testing.assert_array_equal(text.numpy(), probe.inputs["encoder_hidden_states"][-1:])
        assert timestep.item() == probe.timestep
        assert example.run == probe.run
        for name, values in kept.items():
            np.testing.assert_array_equal(probe.inputs[name], values)


def test_every_example_has_noise_of_its_own_and_the_seed_decides_it(
    base: Base, encoder: Session, probes: dict[str, list[Probe]], samples: list[CalibrationSample]
) -> None:
    def drawn(seed: int) -> list[Tensor]:
        return [one.inputs[0] for one in denoising_examples(base, encoder, of_adapter(samples, "sketch"), probes["loud"], seed)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0][:, :4], first[1][:, :4])


def test_samples_without_truth_give_none(
    base: Base, encoder: Session, probes: dict[str, list[Probe]], samples: list[CalibrationSample]
) -> None:
    assert denoising_examples(base, encoder, of_adapter(samples, "sketch", None), probes["loud"]) == []


def test_a_truth_that_is_no_picture_is_one_line(
    base: Base, encoder: Session, probes: dict[str, list[Probe]], samples: list[CalibrationSample]
) -> None:
    broken = [replace(sample, truth="nowhere.png") for sample in of_adapter(samples, "sketch")]
    with pytest.raises(InputError, match=r"^[^\n]*nowhere\.png[^\n]*$"):
        denoising_examples(base, encoder, broken, probes["loud"])


def test_the_schedule_of_these_tests_ends_in_pure_noise() -> None:
    assert alphas_cumprod(NoiseSchedule())[-1] == pytest.approx(0.0, abs=1e-9)
