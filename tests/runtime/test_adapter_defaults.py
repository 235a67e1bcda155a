"""Sampler, steps and guidance travel with an adapter, and what the caller says goes before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quad.core.digests import canonical_json
from quad.core.errors import CompatibilityError, UsageError
from quad.core.manifest import AdapterManifest, NoiseSchedule, SamplerSpec, TaskSpec
from quad.core.sampling import AdapterDefaults, SamplerSettings
from quad.runtime import QuadPipeline, Request
from quad.runtime.adapter_defaults import Presets, check_defaults
from quad.runtime.request import Resolved, resolve
from tests.runtime.conftest import write_manifest
from tests.runtime.test_tasks import OLSS

PNDM = SamplerSpec(kind="pndm", steps=25, settings=SamplerSettings(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False))
TASKS = {
    "text-to-image": TaskSpec(adapter=None, sampler=PNDM, condition="none", mask="ones", guidance=7.5),
    "portrait": TaskSpec(adapter=None, sampler=PNDM, condition="none", mask="ones", guidance=7.5, strength=0.6),
    "sticker": TaskSpec(adapter=None, sampler=OLSS, condition="none", mask="ones"),
}
PRESETS = Presets(
    {
        "lcm": AdapterDefaults(sampler="lcm:4", guidance=1.5),
        "fast": AdapterDefaults(sampler="lcm"),
        "turbo": AdapterDefaults(sampler="euler:2"),
        "ink": AdapterDefaults(trigger_words="inkstyle, in ink"),
    }
)


def _resolved(task: str = "text-to-image", **words: Any) -> Resolved:
    return resolve(Request(task=task, **words), TASKS, NoiseSchedule(), PRESETS)


def _run(resolved: Resolved) -> tuple[str, int, float]:
    spec = resolved.spec
    return spec.sampler.kind, spec.sampler.steps, spec.guidance


def test_an_adapter_brings_its_sampler_steps_and_guidance() -> None:
    resolved = _resolved(adapters={"ink": 0.8, "lcm": 1.0}, prompt="a cat in ink")
    assert _run(resolved) == ("lcm", 4, 1.5)
    assert resolved.notes == ("sampler lcm:4: adapter 'lcm' brings it", "guidance 1.5: adapter 'lcm' brings it")
    # As diffusers' LCMScheduler.from_config of the model's own scheduler.
    assert resolved.spec.sampler.settings == SamplerSettings(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)


def test_without_it_the_task_rules() -> None:
    assert _run(_resolved(adapters={"lcm": 0.0})) == ("pndm", 25, 7.5)
    assert _run(_resolved(adapters={"other": 1.0})) == ("pndm", 25, 7.5)
    assert _run(_resolved(adapters={})) == ("pndm", 25, 7.5)


def test_the_caller_goes_before_the_adapter() -> None:
    assert _run(_resolved(adapters={"lcm": 1.0}, num_inference_steps=8)) == ("lcm", 8, 1.5)
    assert _run(_resolved(adapters={"lcm": 1.0}, guidance_scale=2)) == ("lcm", 4, 2.0)
    resolved = _resolved(adapters={"lcm": 1.0}, sampler="dpmsolver++-karras:9", guidance_scale=3)
    assert _run(resolved) == ("dpmsolver++", 9, 3.0)
    assert resolved.notes == ()
    assert resolved.spec.sampler.settings.sigmas == "karras"  # type: ignore[union-attr]


def test_the_first_that_brings_a_sampler_has_it() -> None:
    resolved = _resolved(adapters={"turbo": 1.0, "lcm": 1.0})
    assert _run(resolved) == ("euler", 2, 1.5)
    assert "adapter 'lcm' is meant for sampler lcm:4, which was not used: 'turbo' comes first" in resolved.notes
    assert _run(_resolved(adapters={"lcm": 1.0, "turbo": 1.0})) == ("lcm", 4, 1.5)


def test_a_distilled_sampler_has_no_guidance_unless_it_is_said() -> None:
    assert _run(_resolved(adapters={"fast": 1.0})) == ("lcm", 4, 1.0)
    assert _run(_resolved(sampler="lcm:6")) == ("lcm", 6, 1.0)
    assert _run(_resolved(sampler="lcm", guidance_scale=7.5)) == ("lcm", 4, 7.5)


def test_few_steps_leave_one_to_take() -> None:
    assert _resolved("portrait", sampler="lcm:1").spec.strength == 1.0
    assert _resolved("portrait", sampler="lcm:4").spec.strength == 0.6


def test_another_number_of_steps_than_the_table_has() -> None:
    resolved = _resolved("sticker", num_inference_steps=3)
    assert _run(resolved)[:2] == ("dpmsolver++", 3)
    assert resolved.notes == ("sampler olss has a table for 1 steps alone: dpmsolver++:3 took its place",)
    assert _resolved("sticker", num_inference_steps=1).spec.sampler is OLSS
    assert _run(_resolved("sticker", sampler="euler:3"))[:2] == ("euler", 3)


def test_settings_that_the_build_stored_go_before_those_of_the_class() -> None:
    stored = SamplerSettings(timestep_spacing="linspace", set_alpha_to_one=True)
    presets = Presets(samplers={"ddim": stored})
    spec = resolve(Request(task="text-to-image", sampler="ddim:3"), TASKS, NoiseSchedule(), presets).spec
    assert spec.sampler == SamplerSpec(kind="ddim", steps=3, settings=stored)


def test_a_prompt_without_the_trigger_words_is_told() -> None:
    assert _resolved(adapters={"ink": 1.0}, prompt="a cat").notes == (
        "adapter 'ink' listens to 'inkstyle, in ink', of which the prompt has nothing",
    )
    assert _resolved(adapters={"ink": 1.0}, prompt="InkStyle, a cat").notes == ()


@pytest.mark.parametrize("sampler", ["abacus", "olss", "lcm:0", ""])
def test_a_sampler_that_the_runtime_has_not(sampler: str) -> None:
    with pytest.raises(UsageError, match=r"^sampler"):
        _resolved(sampler=sampler)
    with pytest.raises(UsageError, match=r"^sampler"):
        check_defaults("--adapter x", AdapterDefaults(sampler=sampler))


def test_a_sampler_of_a_newer_version_is_told_with_its_adapter() -> None:
    presets = Presets({"new": AdapterDefaults(sampler="warp:2")})
    with pytest.raises(CompatibilityError, match=r"^adapter 'new': expected a sampler that this version has, found 'warp:2'; name another"):
        resolve(Request(task="text-to-image", adapters={"new": 1.0}), TASKS, NoiseSchedule(), presets)
    assert resolve(Request(task="text-to-image", adapters={"new": 1.0}, sampler="euler:2"), TASKS, NoiseSchedule(), presets).notes == ()


def test_a_guidance_that_is_no_number() -> None:
    with pytest.raises(UsageError, match="finite"):
        check_defaults("--adapter x", AdapterDefaults(guidance=float("nan")))


def test_the_bundle_carries_it_to_the_picture(bundle_copy: Path) -> None:
    """The same picture as when the caller names all of it."""
    plain = QuadPipeline.from_pretrained(bundle_copy)
    plain.set_adapters("removal")
    words = {"prompt": "make it night", "task": "text-to-image", "seed": 3}
    expected = plain(**words, sampler="lcm:2", guidance_scale=1.25)
    other = plain(**words)
    file = bundle_copy / "adapters" / "removal" / "adapter.json"
    manifest = msgspec.json.decode(file.read_bytes(), type=AdapterManifest)
    defaults = AdapterDefaults(sampler="lcm:2", guidance=1.25)
    file.write_bytes(canonical_json(msgspec.structs.replace(manifest, defaults=defaults)))
    write_manifest(bundle_copy)
    pipe = QuadPipeline.from_pretrained(bundle_copy)
    pipe.set_adapters("removal")
    made = pipe(**words)
    assert (made.sampler, made.guidance) == ("lcm:2", 1.25)
    np.testing.assert_array_equal(made.images[0], expected.images[0])
    assert (np.asarray(made.images[0]) != np.asarray(other.images[0])).any()
