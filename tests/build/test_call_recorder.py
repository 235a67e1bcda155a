"""What is kept of a calibration: whose call it was, spread over all that were made, each a batch of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quad.build.calls.call_recorder import PER_SOURCE, CallRecorder, corrected_calls
from quad.core.component_call import BASE_SOURCE, ComponentCall
from quad.core.encoding import Encoding
from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable
from quad.lora.fit.integers import balanced_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.quantize.observe.observers import Feed

TABLE = SlotTable(
    (
        Slot(path="a", kind="linear", in_features=2, out_features=2, rank=1),
        Slot(path="text_encoder.a", kind="linear", in_features=2, out_features=2, rank=1, component="text_encoder"),
    )
)
ZEROS = {name: np.zeros(shape, np.float32) for name, shape in TABLE.input_shapes().items()}
INK = {name: np.ones(shape, np.float32) for name, shape in TABLE.input_shapes().items()}


def numbered(number: int, rows: int = 1) -> dict[str, Any]:
    return {"sample": np.full((rows, 1), number, np.float32), "timestep": np.array([number], np.float32)}


def keep(plan: list[tuple[str, int]]) -> CallRecorder:
    """Feeds of (source, number of calls), numbered from 0 within each."""
    recorder = CallRecorder({"ink": INK}, ZEROS, TABLE)
    for feed in recorder.follow([Feed(source, lambda: None) for source, _ in plan]):
        count = dict(plan)[feed.source]
        for number in range(count):
            recorder.record("unet", numbered(number))
    return recorder


def numbers(calls: list[ComponentCall]) -> list[int]:
    return [int(call.inputs["sample"][0, 0]) for call in calls]


def test_a_call_belongs_to_the_feed_that_was_taken_last() -> None:
    calls = keep([("ink", 2), (BASE_SOURCE, 3)]).calls()
    assert [call.source for call in calls] == ["ink"] * 2 + [BASE_SOURCE] * 3
    for call, given in zip(calls, [INK] * 2 + [ZEROS] * 3, strict=True):
        assert call.slots.keys() == {"a.lora_A", "a.lora_B"}
        assert all(array is given[name] for name, array in call.slots.items())


def test_the_feeds_themselves_go_through() -> None:
    feeds = [Feed("ink", lambda: None), Feed(BASE_SOURCE, lambda: None)]
    assert list(CallRecorder({}, ZEROS, TABLE).follow(feeds)) == feeds


@pytest.mark.parametrize("count", [1, 5, PER_SOURCE, PER_SOURCE + 1, 100])
def test_first_and_last_and_between_them_even_steps(count: int) -> None:
    found = numbers(keep([("ink", count)]).calls())
    assert len(found) == len(set(found)) == min(count, PER_SOURCE)
    assert (found[0], found[-1]) == (0, count - 1)
    assert max(np.diff(found), default=0) - min(np.diff(found), default=0) <= 1


def test_how_many_are_kept_can_be_said() -> None:
    assert numbers(keep([("ink", 9)]).calls(per_source=3)) == [0, 4, 8]


def test_a_batch_becomes_calls_of_one() -> None:
    recorder = CallRecorder({}, ZEROS, TABLE)
    sample, text = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.arange(8.0, dtype=np.float32).reshape(2, 4)
    recorder.record("unet", {"sample": sample, "timestep": np.array([7.0], np.float32), "encoder_hidden_states": text})
    first, second = recorder.calls()
    for row, call in enumerate((first, second)):
        np.testing.assert_array_equal(call.inputs["sample"], sample[row : row + 1], strict=True)
        np.testing.assert_array_equal(call.inputs["encoder_hidden_states"], text[row : row + 1], strict=True)
        assert call.inputs["timestep"] == np.array([7.0])


def test_what_is_heard_is_a_copy() -> None:
    recorder, inputs = CallRecorder({}, ZEROS, TABLE), numbered(3)
    recorder.record("unet", inputs)
    inputs["sample"][:] = 99
    assert numbers(recorder.calls()) == [3]


def test_every_component_gets_its_own_slots_and_one_without_gets_none() -> None:
    recorder = CallRecorder({"ink": INK}, ZEROS, TABLE)
    for _ in recorder.follow([Feed("ink", lambda: None)]):
        recorder.record("vae_decoder", {"latent": np.zeros((1, 4, 2, 2), np.float32)})
        recorder.record("text_encoder", {"input_ids": np.zeros((1, 4), np.int64)})
        recorder.record("unet", numbered(0))
    found = {call.component: call.slots for call in recorder.calls()}
    assert found.keys() == {"vae_decoder", "text_encoder", "unet"}
    assert found["vae_decoder"] == {}
    assert list(found["text_encoder"]) == ["text_encoder.a.lora_A", "text_encoder.a.lora_B"]
    assert list(found["unet"]) == ["a.lora_A", "a.lora_B"]


def test_adapters_are_given_balanced_as_calibration_gives_them(tiny: Any) -> None:
    recorder = CallRecorder.of(tiny.adapters, tiny.table)
    for _ in recorder.follow([Feed(name, lambda: None) for name in ("transform", BASE_SOURCE)]):
        recorder.record("unet", numbered(0))
    ours, base = recorder.calls()
    for call, expected in ((ours, balanced_inputs(tiny.adapters[0], tiny.table)), (base, slot_inputs(None, tiny.table))):
        assert list(call.slots) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(call.slots[name], array)


def test_a_correction_stands_behind_every_adapter_and_for_the_base_alone() -> None:
    slot = Slot(path="a", kind="linear", in_features=2, out_features=3, rank=3, correction=2, dtype="int8")
    table = SlotTable((slot,), mode="normalised")
    byte = Encoding(bits=8, signed=True, symmetric=True, scale=(0.5,), zero_point=(0,))
    profile = Profile(encodings={"unet": {slot.a_name: byte, slot.b_name: byte}}, mode="pooled", parents={})
    own = {slot.a_name: np.ones((2, 2), np.int8), slot.b_name: np.ones((3, 2), np.int8), slot.scale_name: np.full(2, 0.25, np.float32)}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in table.input_shapes().items()}
    ink = {name: array + (np.arange(array.size).reshape(array.shape) % 3 == 0) for name, array in zeros.items()}
    ink[slot.a_name][1:] = ink[slot.b_name][:, 1:] = 0.0
    calls = [ComponentCall(source=source, inputs={}, slots=slots) for source, slots in (("ink", ink), (BASE_SOURCE, zeros))]
    of_ink, of_base = corrected_calls(calls, own, table, profile)
    for call in (of_ink, of_base):
        assert (call.slots[slot.a_name][1:] == 0.5).all()
        assert (call.slots[slot.b_name][:, 1:] == 0.5).all()
        assert (call.slots["unet.lora_scales"][1:] == 0.25).all()
    np.testing.assert_array_equal(of_ink.slots[slot.a_name][:1], ink[slot.a_name][:1])
    assert not of_base.slots[slot.a_name][:1].any()
    assert corrected_calls(calls, {}, table, profile) == tuple(calls)
