"""A base's scheduler config means to us what it means to diffusers, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest

from quad.core.errors import InputError, UnsupportedError, UsageError
from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.core.sampling import SamplerSettings
from quad.model.base.noise_schedule import read_scheduler
from quad.runtime.samplers.names import SAMPLER_NAMES, parse_sampler
from tests.runtime.samplers.beside import apart, in_double, run_ours, run_theirs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# As Stable Diffusion 1.5's own file.
SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SCHEDULE = NoiseSchedule(beta_schedule="scaled_linear", rescale_zero_snr=False, prediction="epsilon")
CLASSES = {
    "ddim": "DDIMScheduler", "pndm": "PNDMScheduler", "euler": "EulerDiscreteScheduler", "euler-karras": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler", "lms-karras": "LMSDiscreteScheduler", "dpmsolver++": "DPMSolverMultistepScheduler",
    "dpmsolver++-karras": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler", "unipc-karras": "UniPCMultistepScheduler",
}  # fmt: skip


def _write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps(config))
    return path


def _settings(spec: SamplerSpec) -> SamplerSettings:
    assert spec.settings is not msgspec.UNSET
    return spec.settings


def test_stable_diffusion_as_it_ships(tmp_path):
    schedule, spec = read_scheduler(_write(tmp_path, SD15))
    assert schedule == SCHEDULE
    settings = SamplerSettings(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    assert spec == SamplerSpec(kind="pndm", steps=25, settings=settings)


@pytest.mark.parametrize("name", CLASSES)
def test_a_named_sampler_is_that_of_from_config(tmp_path, name):
    karras = {"use_karras_sigmas": True} if name.endswith("-karras") else {}
    with in_double(CLASSES[name]):
        scheduler = getattr(diffusers, CLASSES[name]).from_config(dict(SD15), **karras)
        theirs = run_theirs(scheduler, 9)
    schedule, spec = read_scheduler(_write(tmp_path, SD15), f"{name}:9")
    assert spec.steps == 9
    assert apart(run_ours(spec, schedule), theirs) <= 1e-8


@pytest.mark.parametrize("name", sorted({*CLASSES.values(), "LCMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler"}))
def test_the_index_s_class_goes_before_the_config_s(tmp_path, name):
    """diffusers opens the class of model_index.json with the other class's config."""
    path, theirs = _write(tmp_path, SD15), getattr(diffusers, name).from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "own")
    assert read_scheduler(path, index_class=name) == read_scheduler(tmp_path / "own" / "scheduler_config.json")
    assert read_scheduler(path, "ddim:7", index_class=name)[1].kind == "ddim"


@pytest.mark.parametrize("name", sorted({*CLASSES.values(), "LCMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler"}))
def test_defaults_are_diffusers_own(tmp_path, name):
    # A config that says nothing; the pipeline mends nothing here.
    schedule, spec = read_scheduler(_write(tmp_path, {"_class_name": name}), pipeline="StableDiffusionInstructPix2PixPipeline")
    (tmp_path / "full").mkdir()
    getattr(diffusers, name)().save_pretrained(tmp_path / "full")
    full = read_scheduler(tmp_path / "full" / "scheduler_config.json", pipeline="StableDiffusionInstructPix2PixPipeline")
    assert full == (schedule, spec)
    if name in CLASSES.values():
        with in_double(name):
            theirs = run_theirs(getattr(diffusers, name)(), 9)
        assert apart(run_ours(msgspec.structs.replace(spec, steps=9), schedule), theirs) <= 1e-8


@pytest.mark.parametrize(
    ("pipeline", "offset", "clip", "skip"),
    [
        ("StableDiffusionPipeline", 1, None, False),
        ("StableDiffusionImg2ImgPipeline", 1, None, False),
        ("StableDiffusionInpaintPipeline", 1, 0.7, True),
        ("StableDiffusionInstructPix2PixPipeline", 0, 0.7, False),
    ],
)
def test_pipelines_mend_what_diffusers_pipelines_mend(tmp_path, pipeline, offset, clip, skip):
    ddim = _write(tmp_path, {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 0.7, "steps_offset": 0})
    settings = _settings(read_scheduler(ddim, pipeline=pipeline)[1])
    assert (settings.steps_offset, settings.clip_sample_range) == (offset, clip)
    pndm = _write(tmp_path, {"_class_name": "PNDMScheduler", "skip_prk_steps": False})
    assert _settings(read_scheduler(pndm, pipeline=pipeline)[1]).skip_prk_steps == skip


def test_the_schedule_is_the_models_own_whatever_the_sampler(tmp_path):
    # Heun's own default of beta_start is another than Euler's: the model was trained with one of them.
    path = _write(tmp_path, {"_class_name": "HeunDiscreteScheduler", "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"})
    schedules = {read_scheduler(path, name)[0] for name in (None, "euler", "unipc", "ddim")}
    expected = NoiseSchedule(beta_schedule="scaled_linear", rescale_zero_snr=False, prediction="v_prediction")
    assert schedules == {expected}


def test_betas_that_were_trained(tmp_path):
    betas = np.linspace(0.001, 0.02, 50).tolist()
    config = {"_class_name": "DDIMScheduler", "trained_betas": betas, "num_train_timesteps": 50, "clip_sample": False}
    schedule, spec = read_scheduler(_write(tmp_path, config), "ddim:7")
    assert schedule.trained_betas == tuple(betas)
    with in_double("DDIMScheduler"):
        theirs = run_theirs(diffusers.DDIMScheduler(**{k: v for k, v in config.items() if k != "_class_name"}, steps_offset=1), 7)
    assert apart(run_ours(spec, schedule), theirs) <= 1e-8


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_name_reads(tmp_path, name):
    schedule, spec = read_scheduler(_write(tmp_path, SD15), name)
    assert schedule == SCHEDULE
    assert spec.kind == name.removesuffix("-karras")
    assert (_settings(spec).sigmas == "karras") == name.endswith("-karras")
    # It travels in the bundle as it is.
    assert msgspec.json.decode(msgspec.json.encode(spec), type=SamplerSpec) == spec


def test_sister_classes_need_a_sampler(tmp_path):
    path = _write(tmp_path, {**SD15, "_class_name": "DEISMultistepScheduler", "algorithm_type": "deis", "solver_type": "logrho"})
    with pytest.raises(UnsupportedError, match=r"found DEISMultistepScheduler; choose one with --sampler$"):
        read_scheduler(path)
    # diffusers reads these two words of another class as its own usual ones.
    _, spec = read_scheduler(path, "unipc")
    assert (spec.kind, _settings(spec).solver_type) == ("unipc", "bh2")
    assert _settings(read_scheduler(path, "dpmsolver++")[1]).solver_type == "midpoint"


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, UnsupportedError, "found FlowMatchEulerDiscreteScheduler; "),
        ({"_class_name": None}, UnsupportedError, "found None; "),
        ({"_class_name": ["DDIMScheduler"]}, UnsupportedError, "found ['DDIMScheduler']; "),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, UnsupportedError, "found thresholding=True; "),
        (
            {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"},
            UnsupportedError,
            "interpolation_type='log_linear'",
        ),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, UnsupportedError, "found use_beta_sigmas=True; "),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, UnsupportedError, "found timestep_type='continuous'; "),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, UnsupportedError, "found use_flow_sigmas=True; "),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}, UnsupportedError, "found 'sde-dpmsolver'; "),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, UnsupportedError, "solver_order"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, UnsupportedError, "found predict_x0=False; "),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, UnsupportedError, "learned_range"),
        ({"beta_schedule": "sigmoid"}, UnsupportedError, "sigmoid"),
        ({"prediction_type": "flow_prediction"}, UnsupportedError, "flow_prediction"),
        ({"steps_offset": "one"}, UnsupportedError, "steps_offset"),
        ({"predict_epsilon": False}, UnsupportedError, "found predict_epsilon=False; "),
        ({"trained_betas": [1e308] * 1000}, InputError, "betas that leave less and less"),
        ({"new_trick": 3}, UnsupportedError, "found new_trick=3; "),
        ({"beta_start": float("nan")}, InputError, "a finite beta_start"),
        ({"beta_end": 2.0}, InputError, "betas that leave less and less"),
        ({"beta_start": -0.1}, InputError, "betas that leave less and less"),
        ({"num_train_timesteps": 10**12}, InputError, "num_train_timesteps of 2 to"),
        ({"num_train_timesteps": 1}, InputError, "num_train_timesteps of 2 to"),
        ({"trained_betas": [0.1, 0.2]}, InputError, "as many trained_betas"),
    ],
)
def test_what_would_change_pictures_is_refused_by_name(tmp_path, fields, error, text):
    pipeline = "StableDiffusionInstructPix2PixPipeline"  # which mends nothing
    with pytest.raises(error) as caught:
        read_scheduler(_write(tmp_path, {**SD15, **fields}), pipeline=pipeline)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_nothing_is_passed_over(tmp_path):
    plain = read_scheduler(_write(tmp_path, SD15))
    idle = {
        "dynamic_thresholding_ratio": 0.9,
        "use_karras_sigmas": None,
        "new_flag": False,
        "new_path": None,
        "solver_order": 3,
        "predict_epsilon": True,
    }
    assert read_scheduler(_write(tmp_path, {**SD15, **idle})) == plain


@pytest.mark.parametrize("content", ["", "[]", "{", '"ddim"'])
def test_no_config_is_an_input_error(tmp_path, content):
    path = tmp_path / "scheduler_config.json"
    path.write_text(content)
    with pytest.raises(InputError):
        read_scheduler(path)
    with pytest.raises(InputError, match="no such file"):
        read_scheduler(tmp_path / "none.json")


def test_names_and_steps():
    assert (parse_sampler("euler").steps, parse_sampler("euler").stated) == (25, False)
    assert parse_sampler("dpmsolver++-karras:12").steps == 12
    with pytest.raises(
        UsageError,
        match=r"^sampler: expected one of ddim, ddpm, pndm, (?=[^\n]*\blcm\b)[^\n]+, and :STEPS, found 'dpm'; choose one of these$",
    ):
        parse_sampler("dpm")
    for text in ("euler:", "euler:0", "euler:-1", "euler:2.5", "euler:many", "euler:²", ""):
        with pytest.raises(UsageError) as caught:
            parse_sampler(text)
        assert "\n" not in str(caught.value)
