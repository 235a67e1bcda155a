"""Rounding to 4 bits lets go of what it has read, matrices of inputs and integers, and gives what it gives with all of them at hand."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.build.build import STAGES, build
from quad.build.calls.float_teacher import FloatTeacher
from quad.build.four_bits import choose_layers, narrow_weights
from quad.build.open_and_slot import SlottedModel, open_and_slot
from quad.build.request import BuildRequest
from quad.core.progress import StageClock, silent
from quad.model.slots.layers import layers_of, weight_array
from quad.quantize.correct.four_bits import four_bit_weight
from quad.quantize.observe.input_grams import Grams
from tests.build.samples import SAMPLES
from tests.four_bits import values_of


def _one_by_one(compute: Callable[[Any], Any], pieces: Iterable[Any]) -> list[Any]:
    return [compute(piece) for piece in pieces]


@pytest.fixture
def request_(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildRequest:
    """Rounded one layer after the other, with as many corrections as half of the layers have room for."""
    monkeypatch.setattr(choose_layers, "CORRECTED", 0.5)
    monkeypatch.setattr(choose_layers, "correction_share", lambda layer, rank: 0.9)
    monkeypatch.setattr(narrow_weights, "side_by_side", _one_by_one)
    return BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="w4a16", correction_rank=2)


def _opened(request: BuildRequest) -> SlottedModel:
    return open_and_slot(request, StageClock(STAGES, silent))


def test_the_last_reader_of_inputs_frees_their_matrix(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where q, k and v share one; and integers, corrections and shifts are those of matrices that all lie beside each other."""
    copies, readers = Grams(), deque[weakref.ref[Any]]()
    gather, rounded = narrow_weights.gather_grams, four_bit_weight

    def gathered(*arguments: Any) -> Grams:
        grams = gather(*arguments)
        readers.extend(weakref.ref(gram) for gram in grams.values())
        return grams

    def weighed(network: Any, grams: Any, calls: Any, share: float) -> None:
        weigh(network, grams, calls, share)
        copies.update({("unet", path): deepcopy(gram) for path, gram in grams.items()})

    def looked_at(*arguments: Any, **options: Any) -> Any:
        mine = readers.popleft()()
        alive = {id(gram) for reader in read if (gram := reader()) is not None}
        assert alive <= {id(mine), *(id(reader()) for reader in readers)}
        read.append(weakref.ref(mine))
        del mine
        return rounded(*arguments, **options)

    weigh, read = narrow_weights.weigh_effects, list[weakref.ref[Any]]()
    monkeypatch.setattr(narrow_weights, "gather_grams", gathered)
    monkeypatch.setattr(narrow_weights, "weigh_effects", weighed)
    monkeypatch.setattr(narrow_weights, "four_bit_weight", looked_at)
    model = _opened(request_)
    layers, slots = layers_of(model.networks["unet"]), model.table.by_path()
    narrowed = narrow_weights._narrowed(request_, model, silent)
    assert not readers
    assert copies
    assert all(reader() is None for reader in read)
    for (component, path), gram in copies.items():
        weight, rank = weight_array(layers[path]), slots[path].correction if path in slots else 0
        alone, layer = four_bit_weight(weight, gram.grams, rank=rank or 0, metric=gram.grams), narrowed[component, path]
        np.testing.assert_array_equal(layer.weight.integers, alone.integers)
        np.testing.assert_array_equal(values_of(layer.weight), values_of(alone))
        shift = (values_of(alone) - weight).reshape(len(weight), -1) @ gram.mean.numpy()
        np.testing.assert_allclose(layer.shift, shift, rtol=1e-4, atol=1e-7)
    assert any(layer.weight.correction is not None for layer in narrowed.values())


@pytest.mark.parametrize("again", [False, True])
def test_a_layers_integers_leave_memory_with_it(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """Whether they were just rounded, or read from what an earlier build has left."""
    if again:
        narrow_weights.narrow_weights(request_, _opened(request_))
    model, integers = _opened(request_), list[weakref.ref[Any]]()
    assert model.cache.goes_on == again
    apply = narrow_weights.apply_integers

    def looked_at(layer: Any, values: Any, encoding: Any) -> None:
        assert all(reference() is None for reference in integers)
        integers.append(weakref.ref(values))
        apply(layer, values, encoding)

    monkeypatch.setattr(narrow_weights, "apply_integers", looked_at)
    narrowed = narrow_weights.narrow_weights(request_, model)
    assert len(integers) == len(model.four_bit_layers)
    assert all(reference() is None for reference in integers)
    assert narrowed.corrections


def test_without_training_no_float_weight_outlives_its_integers(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_at(request: BuildRequest, model: SlottedModel, teacher: FloatTeacher, *_: Any, **__: Any) -> None:
        narrow = {path for component, path in model.four_bit_layers if component == "unet"}
        assert narrow
        assert {path for path, (weight, _) in teacher.layers.items() if weight() is None} == narrow
        raise InterruptedError

    monkeypatch.setattr("quad.build.build.choose_profile", looked_at)
    with pytest.raises(InterruptedError):
        build(replace(request_, distill_steps=0))
