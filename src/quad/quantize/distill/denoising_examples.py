"""Examples for the denoising loss: true pictures, noised as training does, with the outputs that the network should give.

    x_t = sqrt(abar) z_0 + sqrt(1 - abar) eps,    target: v, eps or z_0, as the schedule says

Source: docs/method.md section 1, Eq. 1; Salimans and Ho 2022, appendix D (v).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from quad.core.manifest import NoiseSchedule
from quad.model.base.open import Base
from quad.quantize.distill.teacher_calls import TeacherCall
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.observe.probes import Probe
from quad.runtime.conditioning.condition import to_model
from quad.runtime.conditioning.picture import fit_centre, open_picture, to_rgb
from quad.runtime.engines.engine import Session


def denoising_examples(
    base: Base, encoder: Session, samples: Sequence[CalibrationSample], probes: Sequence[Probe], seed: int = 0
) -> list[TeacherCall]:
    """One example for every probe whose sample has a true picture: the probe's own condition and timestep around that picture.

    Args:
        encoder: the float VAE encoder.
        samples: the adapter's, in the order of its runs.

    Returns:
        Calls whose `target` is the exact answer `(1, c, h, w)`; `without` is not meant to be read.
    """
    latents: dict[int, np.ndarray] = {}
    examples = []
    for number, probe in enumerate(probes):
        truth = samples[probe.run].truth
        if truth is None:
            continue
        if probe.run not in latents:
            picture, _ = to_rgb(open_picture(truth, "truth"))
            image = to_model(fit_centre(picture.shape[1], picture.shape[0], base.picture_size).forward(picture))
            latents[probe.run] = encoder.run({"image": image})
        examples.append(_example(base.schedule, probe, latents[probe.run], np.random.default_rng((seed, number))))
    return examples


def _example(schedule: NoiseSchedule, probe: Probe, z0: np.ndarray, rng: np.random.Generator) -> TeacherCall:
    noise, sigma = rng.standard_normal(z0.shape).astype(np.float32), np.float32(probe.sigma_t)
    signal = np.sqrt(np.float32(1.0) - sigma**2)
    sample, timestep, text = probe.tensors()
    # The last row of a guided call is the one with the prompt.
    sample, timestep, text = sample[-1:].clone(), timestep[-1:], text[-1:]
    sample[:, : z0.shape[1]] = torch.from_numpy(signal * z0 + sigma * noise)
    targets = {"v_prediction": signal * noise - sigma * z0, "epsilon": noise, "sample": z0}
    target = torch.from_numpy(np.asarray(targets[schedule.prediction], np.float32))
    return TeacherCall(run=probe.run, inputs=(sample, timestep, text), target=target, without=torch.zeros_like(target))
