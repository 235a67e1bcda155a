"""Settings of samplers that a model did not come with, as far as its config states them and a device would not tell them itself."""

from __future__ import annotations

from pathlib import Path

import msgspec

from quad.core.errors import UnsupportedError
from quad.core.manifest import SamplerSpec
from quad.core.sampling import SamplerSettings
from quad.model.base.noise_schedule import read_scheduler
from quad.runtime.samplers.names import SAMPLER_NAMES, named_sampler


def stated_samplers(
    path: Path, own: SamplerSpec, pipeline: str = "StableDiffusionPipeline", index_class: str | None = None
) -> dict[str, SamplerSettings]:
    """Settings by sampler name that the config states, and that a device would not tell from the model's own sampler.

    Args:
        own: the model's own sampler.
        pipeline, index_class: as in `read_scheduler`.

    Raises:
        InputError: as `read_scheduler`.
    """
    stated: dict[str, SamplerSettings] = {}
    for name in SAMPLER_NAMES:
        try:
            _, spec = read_scheduler(path, name, pipeline, index_class)
        except UnsupportedError:
            continue  # what no sampler of quad has; a build that asks for this one is told
        if spec != named_sampler(name, own, {}) and spec.settings is not msgspec.UNSET:
            stated[name] = spec.settings
    return stated
