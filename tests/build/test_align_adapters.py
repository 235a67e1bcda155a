"""Packing with alignment: every adapter's integers are its own, taken up again after a kill, and nothing is left behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quad.build.align_adapters import Aligner, checkpoint_file
from quad.build.build import build
from quad.build.calls.float_teacher import measured_on, share_networks
from quad.build.open_and_slot import require_truths
from quad.build.request import BuildRequest
from quad.build.resume.cache import cache_dir
from quad.core.errors import BackendError, CompatibilityError, InputError, QuadError, UsageError
from quad.core.manifest import SamplerSpec
from quad.core.profile import Profile
from quad.core.progress import StageClock
from quad.core.slots import SlotTable
from quad.lora.fit.integers import integer_slots, quantize_adapter
from quad.model.base.open import Base
from quad.model.slots.layers import weights_of
from quad.quantize.observe.calibrate import calibrate, component_networks
from quad.quantize.observe.probes import Probe, record_probes
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.runtime.adapters.buffers import pad, zero_buffers
from tests.build.samples import SAMPLES, picture

STEPS = 2


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def solved(tiny: Any) -> Base:
    """No sampler waits for a table here."""
    sampler = SamplerSpec(kind="euler", steps=2)
    return replace(tiny.base, tasks={name: msgspec.structs.replace(spec, sampler=sampler) for name, spec in tiny.base.tasks.items()})


@pytest.fixture(scope="module")
def profile(solved: Base, tiny: Any) -> Profile:
    networks = component_networks(solved, tiny.network)
    statistics = calibrate(solved, networks, tiny.table, tiny.adapters, SAMPLES)
    return unify(statistics, {"unet": weights_of(tiny.network)}, tiny.table, tiny.adapters, UnifyOptions(lora_bits=8))


@pytest.fixture(scope="module")
def slots(tiny: Any) -> SlotTable:
    return integer_slots(tiny.table, 8)


@pytest.fixture(scope="module")
def aligner(solved: Base, tiny: Any) -> Aligner:
    networks = component_networks(solved, tiny.network)
    teacher = share_networks(networks)
    return Aligner(
        base=solved,
        teacher=teacher,
        student=tiny.network,
        table=tiny.table,
        adapters=tiny.adapters,
        samples=SAMPLES,
        probes=lambda: record_probes(solved, teacher, tiny.table, tiny.adapters, SAMPLES),
    )


@pytest.fixture
def request_(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> BuildRequest:
    return BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="w8a16", distill_steps=STEPS)


def test_every_adapter_is_packed_and_measured(aligner: Aligner, request_: BuildRequest, profile: Profile, slots: SlotTable) -> None:
    shares: list[tuple[str, float]] = []
    packed, found = aligner.pack(request_, profile, slots, lambda stage, share: shares.append((stage, share)))
    assert [(one.name, one.rank, one.source) for one in packed] == [(a.name, a.rank, a.digest) for a in aligner.adapters]
    assert shares == [("align transform", 0.0), ("align removal", 0.5)]
    for one in packed:
        assert pad(one.tensors, zero_buffers(slots)).keys() == slots.input_shapes().keys()
        assert found[one.name].steps == STEPS


def test_without_steps_the_pack_is_rescaling_alone(aligner: Aligner, request_: BuildRequest, profile: Profile, slots: SlotTable) -> None:
    packed, _ = aligner.pack(replace(request_, distill_steps=0), profile, slots)
    for one, adapter in zip(packed, aligner.adapters, strict=True):
        for name, values in quantize_adapter(adapter, slots, profile).items():
            np.testing.assert_array_equal(pad(one.tensors, zero_buffers(slots))[name], values)
    assert not cache_dir(request_).exists()


def test_no_adapters_is_nothing_to_do(aligner: Aligner, request_: BuildRequest, profile: Profile, slots: SlotTable) -> None:
    assert replace(aligner, adapters=()).pack(request_, profile, slots) == ((), {})


def test_a_killed_pack_goes_on(aligner: Aligner, request_: BuildRequest, profile: Profile, slots: SlotTable, tmp_path: Path) -> None:
    def kill(stage: str, share: float) -> None:
        if stage == "align removal":
            raise Killed

    with pytest.raises(Killed):
        aligner.pack(request_, profile, slots, kill)
    assert [file.name for file in cache_dir(request_).iterdir()] == ["distill.transform.safetensors"]
    first = checkpoint_file(request_, "transform").stat().st_mtime_ns
    again, found = aligner.pack(request_, profile, slots)
    whole, expected = aligner.pack(replace(request_, output=tmp_path / "other"), profile, slots)
    assert found == expected
    for one, other in zip(again, whole, strict=True):
        assert {name: values.tobytes() for name, values in one.tensors.items()} == {n: v.tobytes() for n, v in other.tensors.items()}
    assert checkpoint_file(request_, "transform").stat().st_mtime_ns == first  # not trained again


def test_true_pictures_count_with_lambda(aligner: Aligner, request_: BuildRequest, profile: Profile, slots: SlotTable) -> None:
    known = replace(aligner, samples=[replace(sample, truth=picture(7)) for sample in SAMPLES])
    with pytest.raises(UsageError, match=r"^--lambda: expected samples with their true pictures, found none; "):
        aligner.pack(replace(request_, lambda_=1.0), profile, slots)
    packed, found = known.pack(replace(request_, lambda_=1.0), profile, slots)
    assert len(packed) == len(found) == len(aligner.adapters)


def test_a_lambda_without_the_truth_of_one_adapter_names_it(aligner: Aligner) -> None:
    known = [replace(sample, truth=picture(7)) if sample.task == "removal" else sample for sample in SAMPLES]
    require_truths(aligner.base, [a for a in aligner.adapters if a.name == "removal"], known)
    with pytest.raises(
        UsageError, match=r"^--lambda: expected samples of adapter 'transform' with their true pictures, found none; [^\n]+$"
    ):
        require_truths(aligner.base, aligner.adapters, known)


def test_what_was_kept_goes_with_a_refusal_and_stays_for_what_can_be_mended(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: QuadError) -> None:
        file = checkpoint_file(request_, "transform")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")

        def broken(_request: object, _target: object, clock: StageClock, _start: float) -> None:
            with clock("slot"):  # what ends before it has touched no piece
                raise error

        monkeypatch.setattr("quad.build.build._build", broken)
        with pytest.raises(type(error)):
            build(request_)

    fail(BackendError("disk full"))
    assert checkpoint_file(request_, "transform").exists()
    fail(CompatibilityError("does not fit"))
    assert not cache_dir(request_).exists()


def test_the_teacher_keeps_its_biases(tiny: Any) -> None:
    network = component_networks(tiny.base, tiny.network)["unet"]
    kept = share_networks({"unet": network})["unet"]
    layer = dict(network.named_modules())["unet.conv_in"]
    before, mine = layer.bias, dict(kept.named_modules())["unet.conv_in"]
    try:
        layer.bias = torch.nn.Parameter(before.detach() + 1.0, requires_grad=False)
        assert torch.equal(mine.bias, before)
        assert mine.weight is layer.weight
    finally:
        layer.bias = before


def test_a_build_without_samples_is_one_line_and_writes_nothing(request_: BuildRequest, tmp_path: Path) -> None:
    for names in (["transform"], ["removal"]):
        adapters = {name: request_.adapters[name] for name in names}
        with pytest.raises(InputError, match=r"^[^\n]+: expected [^\n]*sample[^\n]*, found none; [^\n]+$"):
            build(replace(request_, adapters=adapters, samples=()))
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_nan_is_one_line_and_writes_nothing(request_: BuildRequest, tmp_path: Path) -> None:
    tensors = load_file(request_.adapters["removal"])
    tensors[next(name for name in tensors if "to_q.lora_A" in name)][0, 0] = torch.nan
    file = tmp_path / "ink.safetensors"
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"^adapter 'ink' \(ink\.safetensors\), \S+to_q\.lora_A: expected finite numbers, [^\n]+$"):
        build(replace(request_, adapters={"ink": file}))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"distill_steps": -1}, "--distill-steps: expected 0 or more, found -1"),
        ({"lambda_": -1.0}, "--lambda: expected a number from 0, found -1.0"),
        ({"lambda_": 1.0, "distill_steps": 0}, "--lambda: expected steps of training, found --distill-steps 0"),
        ({"lambda_": 1.0}, "--lambda: expected samples with their true pictures, found none"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(change: dict[str, Any], says: str, request_: BuildRequest) -> None:
    with pytest.raises(UsageError) as refused:
        build(replace(request_, model=Path("/nowhere"), **change))
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("runs", "steps", "most"), [(1, 9, 4), (2, 9, 4), (3, 8, 4), (6, 8, 8), (6, 1, 4), (2, 1, 4), (1, 2, 4)])
def test_few_calls_of_many_runs_are_enough_to_measure(runs: int, steps: int, most: int) -> None:
    probes = [
        Probe(source="ink", task="task", run=run, inputs={"timestep": np.array([step], np.float32)}, sigma_t=0.5)
        for run in range(runs)
        for step in range(steps)
    ]
    measured = measured_on(probes, most)
    assert len(measured) <= most
    assert [id(probe) for probe in measured] == [id(probe) for probe in probes if any(probe is other for other in measured)]
    of_run = Counter(probe.run for probe in measured)
    assert len(of_run) == min(runs, most)
    assert max(of_run.values()) - min(of_run.values()) <= 1
    assert {0, steps - 1} <= {probe.timestep for probe in measured}
