"""A device names a sampler as the build would have read it from the model's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quad.model.base.noise_schedule import read_scheduler
from quad.model.base.stated_samplers import stated_samplers
from quad.runtime.samplers.names import SAMPLER_NAMES, named_sampler
from quad.zoo.reference import reference_dir
from tests.model.base.test_noise_schedule import SD15

CONFIGS: list[dict[str, Any]] = [
    SD15,
    {**SD15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    {**SD15, "_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "solver_order": 3, "timestep_spacing": "trailing"},
    {**SD15, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "final_sigmas_type": "sigma_min"},
    {**SD15, "_class_name": "LCMScheduler", "original_inference_steps": 40, "clip_sample": True, "clip_sample_range": 2.0},
    {"_class_name": "DDIMScheduler"},
    {"_class_name": "PNDMScheduler"},
    {"_class_name": "DDPMScheduler", "clip_sample": True, "variance_type": "fixed_large"},
]


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["_class_name"])
def test_a_named_sampler_is_what_the_config_says(tmp_path: Path, config: dict[str, Any], pipeline: str) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    _, own = read_scheduler(path, pipeline=pipeline)
    stored = stated_samplers(path, own, pipeline)
    for name in SAMPLER_NAMES:
        assert named_sampler(f"{name}:7", own, stored) == read_scheduler(path, f"{name}:7", pipeline)[1], name
        assert named_sampler(name, own, stored).steps == read_scheduler(path, name, pipeline)[1].steps


def test_usual_models_need_nothing_stored(tmp_path: Path) -> None:
    for text in (json.dumps(SD15), (reference_dir() / "scheduler" / "scheduler_config.json").read_text()):
        path = tmp_path / "scheduler_config.json"
        path.write_text(text)
        assert stated_samplers(path, read_scheduler(path)[1]) == {}
