"""Every sampler against the diffusers class of its name, from end to end, the state compared after each step."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest

from quad.core.manifest import SamplerSpec
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers import Start, add_noise
from tests.runtime.samplers.beside import SDE, apart, clean_latent, first_noise, in_double, open_scheduler, replay, run_ours, run_theirs

# diffusers calls numpy on tensors in the old way, and announces the end of `dpmsolver`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver:FutureWarning"),
]

DDIM, DDPM, PNDM, LCM = "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler"
EULER, ANCESTRAL, HEUN, LMS = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"
DPM, UNIPC, TCD = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "TCDScheduler"
KARRAS, EXPONENTIAL = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}
LOW = {"final_sigmas_type": "sigma_min"}
CLIP = {"clip_sample": True, "clip_sample_range": 0.9}
ORDERS = [{"solver_order": 1}, {"solver_order": 2}, {"solver_order": 2, "solver_type": "heun"}, {"solver_order": 3}]

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", DDIM, {"clip_sample": False}),
    ("ddim", DDIM, {**CLIP, "set_alpha_to_one": False}),
    ("pndm", PNDM, {"skip_prk_steps": True, "set_alpha_to_one": False}),
    ("pndm", PNDM, {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("pndm", PNDM, {"skip_prk_steps": False, "set_alpha_to_one": False}),
    *(("euler", EULER, more) for more in ({}, KARRAS, {**EXPONENTIAL, **LOW}, {**KARRAS, "sigma_min": 0.1, "sigma_max": 10.0})),
    *(("heun", HEUN, more) for more in ({}, KARRAS, CLIP)),
    *(("lms", LMS, more) for more in ({}, KARRAS)),
    *(("dpmsolver++", DPM, {**order, **more}) for order in ORDERS for more in ({}, KARRAS)),
    ("dpmsolver++", DPM, EXPONENTIAL),
    ("dpmsolver++", DPM, {"lambda_min_clipped": -1.5}),
    ("dpmsolver++", DPM, {**LOW, "solver_order": 3, "lower_order_final": False}),
    ("dpmsolver++", DPM, {**LOW, "solver_order": 3, "lower_order_final": False, "euler_at_final": True}),
    *(("dpmsolver", DPM, {**LOW, "algorithm_type": "dpmsolver", **order}) for order in ORDERS),
    *(("unipc", UNIPC, {"solver_order": order, **more}) for order in (1, 2, 3) for more in ({}, KARRAS, {"solver_type": "bh1", **LOW})),
    ("unipc", UNIPC, EXPONENTIAL),
    ("unipc", UNIPC, {"disable_corrector": [0, 2]}),
    ("unipc", UNIPC, {**LOW, "solver_order": 3, "lower_order_final": False}),
]
STOCHASTIC: list[tuple[str, str, dict[str, Any]]] = [
    ("euler-ancestral", ANCESTRAL, {}),
    ("ddpm", DDPM, {"clip_sample": False}),
    ("ddpm", DDPM, {**CLIP, "variance_type": "fixed_large"}),
    ("lcm", LCM, {}),
    ("lcm", LCM, {**CLIP, "original_inference_steps": 40, "timestep_scaling": 7.0}),
    *(("sde-dpmsolver++", DPM, {"algorithm_type": "sde-dpmsolver++", **order}) for order in ORDERS[:3]),
    ("sde-dpmsolver++", DPM, {"algorithm_type": "sde-dpmsolver++", **KARRAS}),
    ("tcd", TCD, {}),
    ("tcd", TCD, {"original_inference_steps": 40, "clip_sample": True}),
    ("dpmsolver-sde", SDE, {}),
    ("dpmsolver-sde", SDE, KARRAS),
]
SPACINGS = [("leading", 1), ("trailing", 0), ("linspace", 0)]
SCHEDULES = [
    ("stable_diffusion", "epsilon"),
    ("stable_diffusion", "v_prediction"),
    ("stable_diffusion", "sample"),
    ("zero_snr", "v_prediction"),
]
# Number of steps, and the strength where the run begins at a latent: below and above the 15 steps at which dpmsolver changes.
RUNS = [(2, None), (5, 1.0), (16, 0.6), (20, None)]
# The sums are taken in another order; at zero terminal SNR sigma starts at 4096, and clipping lies between.
ROUNDING = 1e-9


def _settings(fields: dict[str, Any], spacing: str, offset: int) -> SamplerSettings:
    """What diffusers' fields are called here."""
    own = set(SamplerSettings.__struct_fields__)
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items() if name in own}
    for field, name in (("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "exponential")):
        if fields.get(field):
            found["sigmas"] = name
    return SamplerSettings(timestep_spacing=spacing, steps_offset=offset, **found)  # type: ignore[arg-type]


def _spec(kind: str, steps: int, fields: dict[str, Any], spacing: str, offset: int) -> SamplerSpec:
    return SamplerSpec(kind=kind, steps=steps, settings=_settings(fields, spacing, offset))  # type: ignore[arg-type]


def _label(value: Any) -> str | None:
    return "-".join(f"{one}" for one in value.values()) if isinstance(value, dict) else None


def _valid(name: str, schedule: str, prediction: str) -> bool:
    """What diffusers' class can do at all."""
    if name == PNDM:
        return schedule != "zero_snr" and prediction != "sample"
    return name not in (ANCESTRAL, SDE) or prediction != "sample"


@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES)
@pytest.mark.parametrize(("kind", "name", "fields"), CASES, ids=_label)
def test_every_step_is_diffusers_step(lab, kind, name, fields, schedule, prediction):
    if not _valid(name, schedule, prediction):
        pytest.skip("not something this class does")
    noise_schedule = getattr(lab, schedule)(prediction)
    # Runge-Kutta steps need the whole route.
    runs = [(5, None), (16, 1.0), (20, None)] if fields.get("skip_prk_steps") is False else RUNS
    for spacing, offset in SPACINGS:
        for steps, strength in runs:
            start = None if strength is None else Start(clean_latent(), strength)
            with in_double(name):
                scheduler = open_scheduler(name, noise_schedule, timestep_spacing=spacing, steps_offset=offset, **fields)
                theirs = run_theirs(scheduler, steps, start)
            ours = run_ours(_spec(kind, steps, fields, spacing, offset), noise_schedule, start)
            assert apart(ours, theirs) <= ROUNDING, (spacing, steps, strength)


@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES)
@pytest.mark.parametrize(("kind", "name", "fields"), STOCHASTIC, ids=_label)
def test_every_step_with_the_same_noise(lab, monkeypatch, kind, name, fields, schedule, prediction):
    if not _valid(name, schedule, prediction):
        pytest.skip("not something this class does")
    noise_schedule = getattr(lab, schedule)(prediction)
    large = fields.get("variance_type") == "fixed_large"
    for spacing, offset in SPACINGS:
        for steps, strength in RUNS:
            start = None if strength is None else Start(clean_latent(), strength)
            taken = steps if strength is None else int(steps * strength)
            # Nothing is added in the last step, but for ddpm's larger variance where that is not at timestep 0.
            calls_that_draw = 2 * taken - 2 if name == SDE else taken - 1
            fresh = replay(monkeypatch, name, taken if large and spacing != "linspace" else calls_that_draw)
            with in_double(name):
                scheduler = open_scheduler(name, noise_schedule, timestep_spacing=spacing, steps_offset=offset, **fields)
                theirs = run_theirs(scheduler, steps, start)
            ours = run_ours(_spec(kind, steps, fields, spacing, offset), noise_schedule, start, fresh)
            assert apart(ours, theirs) <= ROUNDING, (spacing, steps, strength)
            assert not fresh.arrays, "draws as many arrays as it says"


@pytest.mark.parametrize(("kind", "name", "fields"), CASES, ids=_label)
def test_diffusers_as_it_is_in_float32(lab, kind, name, fields):
    schedule = lab.stable_diffusion("epsilon")
    # In float32 the first exponential timestep lies just under 999, and dpmsolver and unipc cut it off to 998.
    cut = fields == EXPONENTIAL
    for spacing, offset in SPACINGS:
        theirs = run_theirs(open_scheduler(name, schedule, timestep_spacing=spacing, steps_offset=offset, **fields), 20)
        ours = run_ours(_spec(kind, 20, fields, spacing, offset), schedule)
        assert apart(ours, theirs, timestep=1.0 if cut else 0.01) <= (1e-4 if cut else 1e-5), spacing


@pytest.mark.parametrize(
    ("kind", "name", "fields"),
    [("ddim", DDIM, {"clip_sample": False}), ("pndm", PNDM, {"skip_prk_steps": True, "set_alpha_to_one": False}),
     ("euler", EULER, {}), ("heun", HEUN, {}), ("lms", LMS, {}), ("dpmsolver++", DPM, {}), ("unipc", UNIPC, {}),
     ("euler", EULER, LOW), ("dpmsolver++", DPM, LOW), ("unipc", UNIPC, LOW)],
)  # fmt: skip
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_masked_blending_is_that_of_the_inpainting_pipeline(lab, kind, name, fields, strength):
    schedule = lab.stable_diffusion("epsilon")
    mask = (np.arange(3) > 0).astype(np.float64)
    x0, noise = clean_latent(), first_noise()

    def keep(x, abar):
        return (1.0 - mask) * add_noise(x0, noise, abar) + mask * x

    start = Start(x0 if strength < 1.0 else None, strength, keep)
    with in_double(name):
        scheduler = open_scheduler(name, schedule, timestep_spacing="leading", steps_offset=1, **fields)
        theirs = run_theirs(scheduler, 10, start, lambda kept, x: (1.0 - mask) * kept + mask * x)
    ours = run_ours(_spec(kind, 10, fields, "leading", 1), schedule, start)
    assert apart(ours, theirs) <= ROUNDING
    np.testing.assert_array_equal(ours.states[-1][..., 0], x0[..., 0])


def test_bh1_ends_where_diffusers_divides_by_zero(lab):
    schedule = lab.stable_diffusion("epsilon")
    with in_double(UNIPC):
        theirs = run_theirs(diffusers.UniPCMultistepScheduler(**lab.config(schedule), solver_type="bh1"), 8)
    ours = run_ours(_spec("unipc", 8, {"solver_type": "bh1"}, "trailing", 0), schedule)
    assert np.isnan(theirs.states[-1]).all()
    assert np.isfinite(ours.states[-1]).all()
    np.testing.assert_allclose(ours.states[:-1], theirs.states[:-1], rtol=1e-10)
