"""Of each run one call of each network is recorded, the runs in turns; a run that nobody wants more of ends there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from torch import nn

from quad.build.calls.recorded_runs import PICTURES, RecordedRuns, one_of_each
from quad.build.olss_tables import with_teachers
from quad.core.component_call import BASE_SOURCE
from quad.lora.fit.integers import balanced_inputs
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.side_by_side import side_by_side
from tests.build.samples import SAMPLES, picture
from tests.small_model import Tiny


@pytest.fixture
def networks(tiny: Tiny) -> Mapping[str, nn.Module]:
    return component_networks(tiny.base, tiny.network)


@pytest.fixture
def runs_of(tiny: Tiny, networks: Mapping[str, nn.Module]) -> Callable[..., RecordedRuns]:
    def make(*samples: CalibrationSample) -> RecordedRuns:
        return RecordedRuns(
            base=with_teachers(tiny.base), networks=networks, table=tiny.table, adapters=tiny.adapters, samples=samples, seed=7
        )

    return make


def _made(runs: RecordedRuns, **options: bool) -> RecordedRuns:
    side_by_side(lambda feed: feed.run(), runs.feeds(**options))
    return runs


def test_runs_take_turns_from_the_first_of_their_calls_to_the_last(runs_of: Callable[..., RecordedRuns]) -> None:
    sample = CalibrationSample(task="text-to-image", prompt="a red house")
    timesteps = [float(call.inputs["timestep"][0]) for call in _made(runs_of(*[sample] * 2)).calls("unet")]
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert len(timesteps) == 2


def test_a_call_is_one_row_with_what_its_adapter_binds(tiny: Tiny, runs_of: Callable[..., RecordedRuns]) -> None:
    calls = list(_made(runs_of(*SAMPLES)).calls("unet"))
    assert [call.source for call in calls] == [BASE_SOURCE, "transform", "removal"]
    assert not calls[0].slots
    for call, adapter in zip(calls[1:], tiny.adapters, strict=True):
        whole = balanced_inputs(adapter, tiny.table)
        assert call.slots.keys() == whole.keys()
        for name, values in call.slots.items():
            np.testing.assert_array_equal(values[values != 0], whole[name][whole[name] != 0], err_msg=name)
    assert all(len(call.inputs["sample"]) == 1 for call in calls)


def test_a_run_ends_at_its_call(runs_of: Callable[..., RecordedRuns], networks: Mapping[str, nn.Module]) -> None:
    """And gives what the whole run gives; the first that needs no picture goes on to make one."""
    samples = [CalibrationSample(task="transform", prompt="a tree", image=picture(0)), *SAMPLES]
    asked: list[float] = []
    hook = networks["unet"].register_forward_pre_hook(lambda _, arguments: asked.append(float(arguments[1][0])))
    whole, entire = _made(runs_of(*samples)), len(asked)
    asked.clear()
    short = _made(runs_of(*samples), whole=False)
    hook.remove()
    for call, other in zip(short.calls("unet"), whole.calls("unet"), strict=True):
        np.testing.assert_array_equal(call.inputs["sample"], other.inputs["sample"])
    assert len(asked) < entire
    assert [call.source for call in short.calls("vae_decoder")] == [BASE_SOURCE]


def test_no_more_pictures_are_made_than_the_encoder_has_to_see(runs_of: Callable[..., RecordedRuns]) -> None:
    """Those that tasks read are among them."""
    from_text = CalibrationSample(task="text-to-image", prompt="a red house")
    runs = _made(runs_of(*SAMPLES, *[from_text] * 3))
    assert len(list(runs.calls("vae_decoder"))) == PICTURES - 2
    assert len(list(runs.calls("vae_encoder"))) == PICTURES


def test_one_sample_speaks_for_each_adapter_and_the_base(tiny: Tiny) -> None:
    again = CalibrationSample(task="text-to-image", prompt="a house")
    assert one_of_each(tiny.base, [*SAMPLES, again]) == list(SAMPLES)
    with_it = CalibrationSample(task="text-to-image", prompt="a house", adapter="removal")
    assert one_of_each(tiny.base, [with_it, *SAMPLES]) == [with_it, *SAMPLES[:2]]
