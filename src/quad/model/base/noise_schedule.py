"""Read a base's scheduler: the noise schedule it was trained with, and the sampler its pipeline uses or the user names.

A config becomes what diffusers makes of it: fields that a class does not have are passed over, silent ones take the class's default (read
from the class itself), and a pipeline mends some when it is put together. What would change pictures and is not carried over is refused by
name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import msgspec
import numpy as np

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.families import FAMILIES
from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.core.sampling import SamplerKind, SamplerSettings
from quad.model.base.sampler_names import SCHEDULERS
from quad.model.base.weight_files import read_config
from quad.runtime.samplers import alphas_cumprod
from quad.runtime.samplers.names import parse_sampler

Config = Mapping[str, Any]
MOST_TIMESTEPS = 100_000

# Class, what our samplers call it, and how many steps it takes where nobody says (diffusers' pipelines: 50 for all).
_CLASSES: Mapping[str, tuple[SamplerKind, int]] = {
    "DDIMScheduler": ("ddim", 25),
    "DDPMScheduler": ("ddpm", 50),
    "PNDMScheduler": ("pndm", 25),
    "EulerDiscreteScheduler": ("euler", 25),
    "EulerAncestralDiscreteScheduler": ("euler-ancestral", 25),
    "HeunDiscreteScheduler": ("heun", 15),
    "LMSDiscreteScheduler": ("lms", 25),
    "DPMSolverMultistepScheduler": ("dpmsolver++", 20),
    "UniPCMultistepScheduler": ("unipc", 20),
    "DPMSolverSDEScheduler": ("dpmsolver-sde", 10),
    "LCMScheduler": ("lcm", 4),
    "TCDScheduler": ("tcd", 4),
}
# These sample otherwise, but their configs tell the same schedule: with `--sampler` they will do.
_SAME_SCHEDULE = (
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "SASolverScheduler",
)  # fmt: skip

# What NoiseSchedule calls a field of a config.
_SCHEDULE = MappingProxyType({
    "num_train_timesteps": "steps", "beta_schedule": "beta_schedule", "beta_start": "beta_start", "beta_end": "beta_end",
    "rescale_betas_zero_snr": "rescale_zero_snr", "prediction_type": "prediction", "trained_betas": "trained_betas",
})  # fmt: skip
# Fields that become a setting as they are.
_PLAIN = (
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "sigma_min", "sigma_max", "final_sigmas_type", "solver_order",
    "lower_order_final", "euler_at_final", "disable_corrector", "skip_prk_steps", "original_inference_steps", "timestep_scaling",
)  # fmt: skip
# Fields that become one below.
_CONVERTED = (
    "clip_sample", "clip_sample_range", "use_karras_sigmas", "use_exponential_sigmas", "lambda_min_clipped", "algorithm_type",
    "solver_type", "variance_type",
)  # fmt: skip
# Without effect while the fields that would use them are at their defaults.
_IDLE = ("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type")
# From years ago, and without effect at these values.
_OBSOLETE: Config = {"predict_epsilon": True, "tensor_format": "pt"}


def _defaults(scheduler: str) -> dict[str, Any]:
    """The fields of a diffusers class and what they are where a config is silent."""
    readable = SCHEDULERS["dpmsolver-sde"][0] if scheduler == "DPMSolverSDEScheduler" else scheduler
    parameters = inspect.signature(getattr(diffusers, readable).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _check_known(path: Path, config: Config) -> None:
    """Refuse fields that none of the classes has, for nobody knows what they would do, and numbers that are none.

    Raises:
        UnsupportedError: the first such field that is set, or `predict_epsilon` that is not.
        InputError: NaN or infinity; `lambda_min_clipped` alone may be so low.
    """
    if config.get("predict_epsilon") is False:
        raise UnsupportedError(mismatch(f"{path}", "prediction_type", "predict_epsilon=False", "write prediction_type, sample, instead"))
    fields = {field for scheduler in (*_CLASSES, *_SAME_SCHEDULE) for field in _defaults(scheduler)}
    for field, value in config.items():
        if not field.startswith("_") and field not in fields and value not in (None, False, _OBSOLETE.get(field)):
            raise UnsupportedError(mismatch(f"{path}", "fields of diffusers' schedulers", f"{field}={value!r}", "take the field out"))
        if isinstance(value, float) and not np.isfinite(value) and (field, value) != ("lambda_min_clipped", -np.inf):
            raise InputError(mismatch(f"{path}", f"a finite {field}", value, "mend the file"))


def _noise_schedule(path: Path, config: Config, scheduler: str) -> NoiseSchedule:
    """The schedule the base was trained with.

    Raises:
        UnsupportedError: a kind of schedule or prediction that quad does not know.
        InputError: numbers that are no schedule.
    """
    values = {"rescale_betas_zero_snr": False, **_defaults(scheduler), **config}
    fields = {ours: values[theirs] for theirs, ours in _SCHEDULE.items() if values.get(theirs) is not None}
    try:
        schedule = msgspec.convert(fields, NoiseSchedule)
    except msgspec.ValidationError as error:
        raise UnsupportedError(mismatch(f"{path}", "a schedule quad knows", f"{error}", "choose another base model")) from error
    betas, remedy = schedule.trained_betas, "mend the file"
    if not 2 <= schedule.steps <= MOST_TIMESTEPS or (betas is not msgspec.UNSET and len(betas) != schedule.steps):
        expected = f"num_train_timesteps of 2 to {MOST_TIMESTEPS}, and as many trained_betas where it has some"
        raise InputError(mismatch(f"{path}", expected, schedule.steps, remedy))
    left = np.zeros(2)
    if 0.0 <= schedule.beta_start <= 1.0 and 0.0 <= schedule.beta_end <= 1.0:
        with np.errstate(all="ignore"):
            left = np.concatenate([[1.0], alphas_cumprod(schedule)])
    if not (np.isfinite(left).all() and (np.diff(left) < 0.0).all() and left[-1] >= 0.0):
        raise InputError(mismatch(f"{path}", "betas that leave less and less of the signal", "others", remedy))
    return schedule


def _check_carried(path: Path, scheduler: str, fields: Config) -> None:
    """Refuse what the class would heed and our samplers do not have.

    Raises:
        UnsupportedError: a field of the class, not among those carried over, that is not at its default.
    """
    carried = {*_SCHEDULE, *_PLAIN, *_CONVERTED, *_IDLE}
    for field, default in _defaults(scheduler).items():
        if field not in carried and fields[field] != default and not (default is False and fields[field] is None):
            remedy = "choose a sampler with --sampler, or take the field out"
            raise UnsupportedError(mismatch(f"{path}", f"{scheduler} with {field}={default!r}", f"{field}={fields[field]!r}", remedy))


def _solver_type(kind: str, solver: Any) -> Any:
    """diffusers reads another class's solver type as its own usual one."""
    if kind == "unipc":
        return "bh2" if solver in ("midpoint", "heun", "logrho") else solver
    return "midpoint" if solver in ("bh1", "bh2", "logrho") else solver


def _settings(path: Path, kind: SamplerKind, fields: Config) -> SamplerSettings:
    """The settings of one sampler, from all fields of its class.

    Raises:
        UnsupportedError: a value that our samplers do not have.
    """
    settings: dict[str, Any] = {field: fields[field] for field in _PLAIN if field in fields}
    if fields.get("clip_sample"):
        settings["clip_sample_range"] = fields["clip_sample_range"]
    for field, name in (("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "exponential")):
        if fields.get(field):
            settings["sigmas"] = name
    if fields.get("lambda_min_clipped", -np.inf) not in (-np.inf, "-Infinity", None):
        settings["lambda_min_clipped"] = fields["lambda_min_clipped"]
    if "solver_type" in fields:
        settings["solver_type"] = _solver_type(kind, fields["solver_type"])
    if fields.get("variance_type") not in (None, "fixed_small_log"):
        settings["variance_type"] = fields["variance_type"]
    try:
        return msgspec.convert(settings, SamplerSettings)
    except msgspec.ValidationError as error:
        raise UnsupportedError(mismatch(f"{path}", f"settings that {kind} has", f"{error}", "choose a sampler with --sampler")) from error


def _kind(path: Path, scheduler: str, fields: Config) -> SamplerKind:
    algorithm = fields.get("algorithm_type")
    if algorithm is None:
        return _CLASSES[scheduler][0]
    kinds: Mapping[str, SamplerKind] = {
        "dpmsolver++": "dpmsolver++", "deis": "dpmsolver++", "sde-dpmsolver++": "sde-dpmsolver++", "dpmsolver": "dpmsolver",
    }  # fmt: skip
    if algorithm not in kinds:
        remedy = "choose a sampler with --sampler"
        raise UnsupportedError(mismatch(f"{path}", "algorithm_type dpmsolver++, sde-dpmsolver++ or dpmsolver", repr(algorithm), remedy))
    return kinds[algorithm]


def scheduler_class(path: Path) -> str:
    """The class that a `scheduler_config.json` names.

    Raises:
        InputError: no such file, or no JSON object.
    """
    return f"{read_config(path).get('_class_name')}"


def read_scheduler(
    path: Path, sampler: str | None = None, pipeline: str = "StableDiffusionPipeline", index_class: str | None = None
) -> tuple[NoiseSchedule, SamplerSpec]:
    """Read `scheduler_config.json`.

    Args:
        sampler: a name of `SAMPLER_NAMES`, and `:STEPS`; None for the one of the config.
        pipeline: the class in `model_index.json`, which mends some fields as diffusers does.
        index_class: the scheduler's class in `model_index.json`, which goes before the config's own; None where it names none.

    Returns:
        the noise schedule, and the sampler with its settings and a number of steps.

    Raises:
        UsageError: an unknown sampler. InputError: no such file, or numbers that are no schedule.
        UnsupportedError: a class, field or value that would change the pictures and that quad does not have.
    """
    choice = None if sampler is None else parse_sampler(sampler)
    config = {field: value for field, value in read_config(path).items() if field != "_use_default_values"}
    config_class = index_class or scheduler_class(path)
    if config_class not in _CLASSES and (choice is None or config_class not in _SAME_SCHEDULE):
        remedy = "choose one with --sampler" if config_class in _SAME_SCHEDULE else "choose a Stable-Diffusion-like model"
        raise UnsupportedError(mismatch(f"{path}", f"one of {', '.join(_CLASSES)}", config_class, remedy))
    _check_known(path, config)
    schedule = _noise_schedule(path, config, config_class)
    repairs = next((family.repairs[pipeline] for family in FAMILIES if pipeline in family.repairs), {})
    scheduler, named = (config_class, {}) if choice is None else SCHEDULERS[choice.name]
    merged = {**config, **repairs, **named}
    fields = {field: merged.get(field, default) for field, default in _defaults(scheduler).items()}
    _check_carried(path, scheduler, fields)
    kind = _kind(path, scheduler, fields) if choice is None else choice.kind
    steps = _CLASSES[scheduler][1] if choice is None else choice.steps
    spec = SamplerSpec(kind=kind, steps=steps, settings=_settings(path, kind, fields))
    return schedule, spec
