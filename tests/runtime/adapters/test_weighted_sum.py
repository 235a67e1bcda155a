"""Sums of adapters: exact where they can be, near and said so where they cannot, refused where they would be something else."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import CompatibilityError, UsageError
from quad.core.slots import Slot, SlotTable
from quad.runtime.adapters.block_weights import adapter_weights
from quad.runtime.adapters.buffers import Buffers, zero_buffers
from quad.runtime.adapters.weighted_sum import Notes, headroom, mix_adapters, show_headroom

RANK = 6
TEXT = "text_encoder.layers.0.q_proj"


def _slots(dtype: Any = "int16") -> SlotTable:
    return SlotTable(
        (
            Slot(path="conv_in", kind="conv", in_features=9, out_features=24, rank=RANK, dtype=dtype, kernel=(3, 3)),
            Slot(path="mid.to_q", kind="linear", in_features=32, out_features=24, rank=RANK, dtype=dtype),
            Slot(path=TEXT, kind="linear", in_features=16, out_features=16, rank=RANK, dtype=dtype, component="text_encoder"),
        )
    )


SLOTS = _slots()
ZEROS = zero_buffers(SLOTS)


def adapter(seed: int, rank: int, slots: SlotTable = SLOTS, largest: float = 3000.0, decay: float = 1.0) -> Buffers:
    """An adapter of `rank` in every slot, whose channels matter less and less by `decay`."""
    rng, buffers = np.random.default_rng(seed), {}
    for slot in slots.slots:
        a, b = rng.uniform(-largest, largest, slot.a_shape), rng.uniform(-largest, largest, slot.b_shape)
        b *= (decay ** np.arange(RANK)).reshape(1, -1, *[1] * (b.ndim - 2))
        a[rank:], b[:, rank:] = 0, 0
        rounded = slot.dtype != "float32"
        buffers[slot.a_name], buffers[slot.b_name] = ((np.rint(x) if rounded else x).astype(slot.dtype) for x in (a, b))
    return buffers


def product(buffers: Buffers, slot: Slot) -> NDArray[np.float64]:
    """B A of a slot, exact for integers."""
    a, b = buffers[slot.a_name].astype(np.float64), buffers[slot.b_name].astype(np.float64)
    return np.asarray(b.reshape(slot.out_features, -1) @ a.reshape(slot.rank, -1))


def mix(parts: dict[str, Buffers], weights: dict[str, float], slots: SlotTable = SLOTS) -> tuple[Buffers, Notes]:
    return mix_adapters(parts, weights, slots, zero_buffers(slots))


def _errors(mixed: Buffers, parts: dict[str, Buffers], weights: dict[str, float], slots: SlotTable = SLOTS) -> list[float]:
    """Relative error of B A against the float sum, slot by slot."""
    found = []
    for slot in slots.slots:
        true = sum((weights[name] * product(part, slot) for name, part in parts.items()), np.zeros(()))
        found.append(float(np.linalg.norm(product(mixed, slot) - true) / np.linalg.norm(true)))
    return found


@pytest.mark.parametrize("weights", [{"ink": 1.0, "pen": 1.0}, {"ink": -1.0, "pen": 2.0}, {"ink": 3.0, "pen": -4.0}])
def test_whole_weights_are_exact_where_the_ranks_fit(weights: dict[str, float]) -> None:
    parts = {"ink": adapter(0, 2), "pen": adapter(1, 4)}
    mixed, notes = mix(parts, weights)
    assert notes == ()
    assert _errors(mixed, parts, weights) == [0.0] * len(SLOTS.slots)


def test_a_fraction_rounds_b_by_half_a_step_and_leaves_a() -> None:
    parts, weights = {"ink": adapter(0, 2), "pen": adapter(1, 4)}, {"ink": 0.37, "pen": -0.81}
    mixed, _ = mix(parts, weights)
    for slot in SLOTS.slots:
        rows = np.concatenate([parts["ink"][slot.a_name][:2], parts["pen"][slot.a_name][:4]])
        np.testing.assert_array_equal(mixed[slot.a_name], rows)
        wanted = np.concatenate([0.37 * parts["ink"][slot.b_name][:, :2], -0.81 * parts["pen"][slot.b_name][:, :4]], axis=1)
        assert np.abs(mixed[slot.b_name] - wanted).max() <= 0.5


@pytest.mark.parametrize("ranks", [(2, 4), (5, 4)])
def test_the_order_of_adapters_does_not_matter(ranks: tuple[int, int]) -> None:
    parts = {"ink": adapter(0, ranks[0], decay=0.5), "pen": adapter(1, ranks[1], decay=0.5)}
    weights = {"ink": 0.7, "pen": 0.6}
    one, _ = mix(parts, weights)
    other, _ = mix(dict(reversed(parts.items())), weights)
    for slot in SLOTS.slots:
        np.testing.assert_allclose(product(one, slot), product(other, slot), rtol=0, atol=1e-3 * np.abs(product(one, slot)).max())


def test_a_slot_of_one_adapter_alone_is_its_own_and_an_empty_one_is_the_zeros() -> None:
    """Text-encoder slots of a style, beside an adapter that has the U-Net's alone."""
    parts = {"ink": adapter(0, 4), "pen": adapter(1, 2)}
    for name in ("ink", "pen"):
        parts[name][f"{TEXT}.lora_B"] = ZEROS[f"{TEXT}.lora_B"]
    parts["pen"] |= {name: ZEROS[name] for name in ("conv_in.lora_A", "conv_in.lora_B")}
    mixed, _ = mix_adapters(parts, {"ink": 1.0, "pen": 0.5}, SLOTS, ZEROS)
    assert mixed["conv_in.lora_A"] is parts["ink"]["conv_in.lora_A"]
    assert mixed["conv_in.lora_B"] is parts["ink"]["conv_in.lora_B"]
    assert mixed[f"{TEXT}.lora_A"] is ZEROS[f"{TEXT}.lora_A"]


def test_rows_that_adapters_share_take_one_place() -> None:
    parts = {"ink": adapter(0, 4), "pen": adapter(1, 4)}
    for slot in SLOTS.slots:
        parts["pen"][slot.a_name][1:4] = parts["ink"][slot.a_name][:3]
    weights = {"ink": 1.0, "pen": -2.0}
    mixed, notes = mix(parts, weights)
    assert notes == ()
    assert _errors(mixed, parts, weights) == [0.0] * len(SLOTS.slots)


def test_a_sum_of_too_many_ranks_is_the_nearest_and_says_what_it_keeps() -> None:
    parts = {"ink": adapter(0, 5, decay=0.4, largest=16000), "pen": adapter(1, 4, decay=0.4, largest=16000)}
    mixed, notes = mix(parts, {"ink": 0.9, "pen": 0.5})
    worst = 1.0
    for slot in SLOTS.slots:
        true = 0.9 * product(parts["ink"], slot) + 0.5 * product(parts["pen"], slot)
        left, values, right = np.linalg.svd(true, full_matrices=False)
        best = left[:, :RANK] * values[:RANK] @ right[:RANK]
        worst = min(worst, float(np.square(values[:RANK]).sum() / np.square(values).sum()))
        assert np.linalg.norm(product(mixed, slot) - best) <= 1e-3 * np.linalg.norm(true)
    assert len(notes) == 1
    assert notes[0].startswith(f"adapters: 'ink' + 'pen' exceed the rank of 3 slots; the nearest sum keeps {worst:.3f} at ")


def test_a_sum_that_would_keep_too_little_is_refused_with_the_way_out() -> None:
    parts = {"ink": adapter(0, 6), "pen": adapter(1, 5)}
    parts["pen"][f"{TEXT}.lora_A"][4:] = 0
    with pytest.raises(CompatibilityError) as refused:
        mix(parts, {"ink": 1.0, "pen": 1.0})
    text = str(refused.value)
    assert text.startswith("adapters 'ink' (rank 6) + 'pen' (rank ")
    assert text.endswith("of theirs, under 0.9: use fewer at once or build with --room 2 or --max-rank 11")
    assert "the bundle has 6, and the nearest sum of that rank keeps 0." in text
    mix({name: parts[name] for name in ("ink", "pen")}, {"ink": 1.0, "pen": 0.0})


@pytest.mark.parametrize("dtype", ["int16", "int8"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_headroom_is_where_clipping_begins(dtype: str, sign: float) -> None:
    slots = _slots(dtype)
    part = adapter(3, 4, slots, largest=77.0)
    room = headroom(part, slots)
    assert room > 1.0
    mixed, notes = mix({"ink": part}, {"ink": sign * room}, slots)
    assert notes == ()
    assert max(np.abs(mixed[slot.b_name].astype(int)).max() for slot in slots.slots) == np.iinfo(dtype).max
    _, notes = mix({"ink": part}, {"ink": sign * 1.02 * room}, slots)
    assert len(notes) == 1
    assert notes[0].startswith(f"adapters: 'ink' at weight {sign * 1.02 * room:g}: up to {show_headroom(room)} fits the profile; ")
    assert int(notes[0].split("; ")[1].split()[0]) >= 1


def test_headroom_does_not_ask_for_padding_and_floats_have_no_end() -> None:
    part = adapter(3, 4)
    own = {name: array[:4] if name.endswith("A") else array[:, :4] for name, array in part.items() if not name.startswith(TEXT)}
    part |= {name: ZEROS[name] for name in SLOTS.of("text_encoder").input_shapes()}
    assert headroom(own, SLOTS) == headroom(part, SLOTS)
    floats = _slots("float32")
    assert headroom(adapter(3, 4, floats), floats) == headroom(ZEROS, SLOTS) == np.inf


@pytest.mark.parametrize(("room", "shown"), [(1.3199, "1.31"), (2.0, "2.00"), (1.0, "1.00"), (10.999, "10.99")])
def test_headroom_is_shown_as_a_weight_that_fits(room: float, shown: str) -> None:
    assert show_headroom(room) == shown


def test_every_adapter_that_is_clipped_is_named() -> None:
    parts = {"ink": adapter(0, 2), "pen": adapter(1, 2), "oil": adapter(2, 2)}
    _, notes = mix(parts, {"ink": 50.0, "pen": 1.0, "oil": -40.0})
    assert [note.split("'")[1] for note in notes] == ["ink", "oil"]


def test_floats_add_like_integers() -> None:
    floats = _slots("float32")
    parts, weights = {"ink": adapter(0, 5, floats, decay=0.4), "pen": adapter(1, 4, floats, decay=0.4)}, {"ink": 0.9, "pen": 5.0}
    near, notes = mix(parts, weights, floats)
    assert len(notes) == 1
    assert max(_errors(near, parts, weights, floats)) < 0.3
    parts["ink"] = adapter(0, 2, floats)
    exact, notes = mix(parts, weights, floats)
    assert notes == ()
    assert max(_errors(exact, parts, weights, floats)) < 1e-6
    assert {array.dtype for array in (*near.values(), *exact.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("names", "weights"), [(["a"], [1.0, 2.0]), (["a", "a"], None), (["a"], float("nan")), (["a", "b"], [1.0])])
def test_wrong_weights(names: list[str], weights: Any) -> None:
    with pytest.raises(UsageError, match="one finite weight each"):
        adapter_weights(names, weights)


def test_a_sum_ends_where_the_chip_ends() -> None:
    """Slots whose integers have an end of their own are clipped there, and the room is counted to it."""
    ended = SlotTable(tuple(msgspec.structs.replace(slot, largest=8000) for slot in SLOTS.slots))
    buffers = adapter(0, 2)
    mixed, _ = mix_adapters({"a": buffers}, {"a": 5.0}, ended, ZEROS)
    assert max(int(np.abs(mixed[slot.b_name].astype(int)).max()) for slot in ended.slots) == 8000
    assert headroom(buffers, ended) == pytest.approx(headroom(buffers, SLOTS) * 8000 / 32767)
