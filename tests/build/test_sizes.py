"""A build for several sizes: a graph for each, and ranges that hold them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quad.build.build import STAGES
from quad.build.calls.calibration_runs import CalibrationRuns
from quad.build.fixed_threads import fixed_threads
from quad.build.open_and_slot import SlottedModel, open_and_slot
from quad.build.request import BuildRequest
from quad.core.picture_size import PictureSize
from quad.core.progress import StageClock, silent
from quad.quantize.observe.calibrate import calibrate
from quad.quantize.observe.observers import observe
from tests.build.samples import SAMPLES

SIZES, SMALL = (PictureSize(64, 64), PictureSize(64, 128)), (PictureSize(16, 16), PictureSize(16, 32))


@pytest.fixture(scope="module")
def model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SlottedModel:
    request = BuildRequest(
        model_dir,
        {},
        tmp_path_factory.mktemp("sizes") / "phone",
        samples=SAMPLES[:1],
        size="64,64x128",
        sampler="ddim:1",
        precision="w8a16",
    )
    return open_and_slot(request, StageClock(STAGES, silent))


def test_every_size_has_its_graphs_and_calls(model: SlottedModel) -> None:
    own = {"unet", "vae_encoder", "vae_decoder"}
    assert set(model.specs) == own | {"text_encoder"} | {f"{name}.64x128" for name in own}
    assert {call.component for call in model.references} == set(model.specs)
    shapes = {name: tuple(spec.inputs["sample"].shape[2:]) for name, spec in model.specs.items() if "unet" in name}
    assert shapes == {"unet": (16, 16), "unet.64x128": (32, 16)}


def test_ranges_hold_every_size(model: SlottedModel) -> None:
    assert model.calibration_sizes == model.base.sizes == SIZES
    model = replace(model, calibration_sizes=SMALL)
    pooled = observe(model.networks, CalibrationRuns(model).every)
    apart = [calibrate(model.base.at(size), model.networks, model.table, (), model.samples) for size in SMALL]
    compared = 0
    for component, sites in pooled.sites.items():
        for site, by_source in sites.items():
            for source, seen in by_source.items():
                alone = [statistics.sites[component][site][source].histogram for statistics in apart]
                assert seen.histogram.total == sum(histogram.total for histogram in alone)
                assert seen.histogram.low == min(histogram.low for histogram in alone)
                assert seen.histogram.high == max(histogram.high for histogram in alone)
                compared += 1
    assert compared > 50


def test_inputs_counted_beside_other_runs_are_those_counted_alone(model: SlottedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quad.quantize.observe.side_by_side.default_threads", lambda: 3)
    monkeypatch.setattr("quad.build.calls.calibration_runs.few_places", lambda samples: [0, 2, 3])
    runs = CalibrationRuns(replace(model, calibration_sizes=SMALL, samples=SAMPLES[:1] * 4))
    with fixed_threads(), runs.counting() as feeds:
        observe(model.networks, feeds)
    with monkeypatch.context() as patch:
        patch.setattr("quad.build.calls.calibration_runs.gather_grams", lambda *_: pytest.fail("the runs are made once"))
        beside = runs.take_grams()
    with fixed_threads():
        again = runs.take_grams()
    assert len(beside) > 50
    assert beside.keys() == again.keys()
    for key, gram in again.items():
        assert all(map(torch.equal, gram.grams, beside[key].grams))
        assert torch.equal(gram.mean, beside[key].mean)
