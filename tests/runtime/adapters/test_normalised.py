"""Normalised slots on a device: a weight is a factor of the scales, sums are exact, nothing clips, and the base is the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, UsageError, VerificationError
from quad.core.padding import slot_scales, trim
from quad.core.profile import Profile
from quad.core.slots import NORMALISED, Slot, SlotTable
from quad.runtime.adapters.block_weights import adapter_weights
from quad.runtime.adapters.buffers import BESIDE_BYTES, Buffers, check_tensors, largest_bytes, pad, padded_bytes, zero_buffers
from quad.runtime.adapters.weighted_sum import Notes, headroom, mix_adapters

RANK, END = 6, 32767
TEXT = "text_encoder.layers.0.q_proj"


def _slots(dtype: Any = "int16") -> SlotTable:
    return SlotTable(
        (
            Slot(path="down_blocks.0.conv", kind="conv", in_features=9, out_features=24, rank=RANK, dtype=dtype, kernel=(3, 3)),
            Slot(path="mid_block.to_q", kind="linear", in_features=32, out_features=24, rank=RANK, dtype=dtype),
            Slot(path=TEXT, kind="linear", in_features=16, out_features=16, rank=RANK, dtype=dtype, component="text_encoder"),
        ),
        NORMALISED,
    )


SLOTS = _slots()
ZEROS = zero_buffers(SLOTS)


def tensors(seed: int, rank: int, slots: SlotTable = SLOTS, decay: float = 1.0) -> dict[str, NDArray[Any]]:
    """An adapter's file: rows of A and columns of B as large as they may be, scales that count less and less by `decay`."""
    rng, held = np.random.default_rng(seed), {}
    for slot in slots.slots:
        end = 1.0 if slot.dtype == "float32" else float(np.iinfo(slot.dtype).max)
        a, b = rng.uniform(-1, 1, (rank, *slot.a_shape[1:])), rng.uniform(-1, 1, (slot.b_shape[0], rank, *slot.b_shape[2:]))
        a /= np.abs(a).max(axis=tuple(range(1, a.ndim)), keepdims=True)
        b /= np.abs(b).max(axis=(0, *range(2, b.ndim)), keepdims=True)
        for name, part in ((slot.a_name, a * end), (slot.b_name, b * end)):
            held[name] = (part if slot.dtype == "float32" else np.rint(part)).astype(slot.dtype)
        held[slot.scale_name] = (rng.uniform(0.2, 1.0, rank) * decay ** np.arange(rank)).astype(np.float32)
    return held


def adapter(seed: int, rank: int, slots: SlotTable = SLOTS, decay: float = 1.0) -> Buffers:
    return pad(tensors(seed, rank, slots, decay), zero_buffers(slots))


def product(buffers: Buffers, slot: Slot) -> NDArray[np.float64]:
    """`B diag(s) A` of a slot in the units of its lattice."""
    scales = slot_scales(buffers.scales, SLOTS)[slot.path].astype(np.float64)
    a, b = buffers[slot.a_name].astype(np.float64), buffers[slot.b_name].astype(np.float64)
    return np.asarray((b.reshape(slot.out_features, -1) * scales) @ a.reshape(slot.rank, -1))


def mix(parts: Mapping[str, Buffers], weights: Mapping[str, Any], slots: SlotTable = SLOTS) -> tuple[Buffers, Notes]:
    return mix_adapters(parts, weights, slots, zero_buffers(slots))


def errors(mixed: Buffers, parts: Mapping[str, Buffers], weights: Mapping[str, float]) -> float:
    """Relative error of the products against the sum, the worst slot's."""
    return max(
        float(np.linalg.norm(product(mixed, slot) - true) / np.linalg.norm(true))
        for slot in SLOTS.slots
        for true in [sum((weights[name] * product(part, slot) for name, part in parts.items()), np.zeros(()))]
    )


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        (
            f"{TEXT}.lora_scale",
            None,
            f"slot {TEXT}: expected A, B and scales, or none of them, found {TEXT}.lora_A and {TEXT}.lora_B alone",
        ),
        (f"{TEXT}.lora_scale", np.ones(3, np.float32), r"lora_scale: expected float32 \(4,\), found float32 \(3,\)"),
        (f"{TEXT}.lora_scale", np.ones((4, 1), np.float32), r"lora_scale: expected float32 \(4,\), found float32 \(4, 1\)"),
        (f"{TEXT}.lora_scale", np.ones(4, np.float64), r"lora_scale: expected float32 \(4,\), found float64 \(4,\)"),
        (f"{TEXT}.lora_scale", np.array([1, np.nan, 1, 1], np.float32), "lora_scale: expected finite scales, found NaN or Inf"),
        (f"{TEXT}.lora_scale", np.array([1, np.inf, 1, 1], np.float32), "lora_scale: expected finite scales, found NaN or Inf"),
        ("ghost.lora_scale", np.ones(4, np.float32), "expected tensors of 3 slots, found ghost.lora_scale, which is none"),
        ("unet.lora_scales", np.ones(12, np.float32), "expected tensors of 3 slots, found unet.lora_scales, which is none"),
    ],
)
def test_what_does_not_fit_is_named(name: str, tensor: NDArray[Any] | None, says: str) -> None:
    held = tensors(0, 4)
    check_tensors("ink", held, SLOTS)
    held.pop(name, None)
    if tensor is not None:
        held[name] = tensor
    with pytest.raises(VerificationError, match=rf"^adapter 'ink'.*{says}; pack it again with quad adapt$"):
        check_tensors("ink", held, SLOTS)


def test_scales_at_searched_slots_are_named_as_well() -> None:
    with pytest.raises(VerificationError, match=r"expected tensors of 3 slots, found .*lora_scale, which is none"):
        check_tensors("ink", tensors(0, 4), SlotTable(SLOTS.slots))


@pytest.mark.parametrize("rank", [RANK, 2])
def test_a_file_of_the_slots_rank_is_bound_as_it_is_and_a_smaller_one_with_zeros_behind(rank: int) -> None:
    held = {name: array for name, array in tensors(0, rank).items() if not name.startswith("mid_block")}
    buffers = pad(held, ZEROS)
    assert [*buffers] == [*SLOTS.input_shapes()]
    assert {name: array.shape for name, array in buffers.items()} == SLOTS.input_shapes()
    if rank == RANK:
        assert all(buffers[name] is array for name, array in held.items() if name in buffers)
    assert buffers["mid_block.to_q.lora_A"] is ZEROS["mid_block.to_q.lora_A"]
    scales = slot_scales(buffers, SLOTS)
    np.testing.assert_array_equal(scales[TEXT], np.pad(held[f"{TEXT}.lora_scale"], (0, RANK - rank)))
    assert not scales["mid_block.to_q"].any()
    back = trim(buffers, SLOTS)
    assert back.keys() == held.keys()
    for name, array in held.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_memory_is_that_of_the_slots_and_of_the_vectors() -> None:
    assert padded_bytes(ZEROS, ZEROS) == largest_bytes(SLOTS) + BESIDE_BYTES * len(ZEROS)
    assert padded_bytes(tensors(0, 2), ZEROS) == padded_bytes(ZEROS, ZEROS)
    assert padded_bytes(tensors(0, 2), zero_buffers(SlotTable(SLOTS.slots))) == padded_bytes(ZEROS, ZEROS) - 2 * BESIDE_BYTES - 4 * 3 * RANK


@pytest.mark.parametrize("weight", [0.5, -1.0, 4.0, 1e6, 1e-6])
def test_a_weight_changes_the_scales_alone(weight: float) -> None:
    ink = adapter(0, 4)
    mixed, notes = mix({"ink": ink}, {"ink": weight})
    assert (notes, mixed.source) == ((), ink)
    assert [name for name in ink if mixed[name] is not ink[name]] == [*SLOTS.scale_inputs()]
    for name, vector in ink.scales.items():
        np.testing.assert_array_equal(mixed[name], (vector.astype(np.float64) * weight).astype(np.float32))


def test_a_weight_by_block_is_a_factor_of_its_slots_scales() -> None:
    ink = adapter(0, 4)
    weights = adapter_weights(["ink"], [{"unet": {"down": 0.25}, "text_encoder": -2.0}])
    mixed, _ = mix({"ink": ink}, weights)
    before, after = slot_scales(ink.scales, SLOTS), slot_scales(mixed.scales, SLOTS)
    for path, weight in {"down_blocks.0.conv": 0.25, "mid_block.to_q": 1.0, TEXT: -2.0}.items():
        np.testing.assert_array_equal(after[path], before[path] * np.float32(weight))


@pytest.mark.parametrize("dtype", ["int16", "int8", "float32"])
@pytest.mark.parametrize("weights", [{"ink": 0.37, "pen": -0.81}, {"ink": 300.0, "pen": -4e-3}, {"ink": 1.0, "pen": 1.0}])
def test_sums_that_fit_are_exact_whatever_the_weights(dtype: str, weights: dict[str, float]) -> None:
    slots = _slots(dtype)
    parts = {"ink": adapter(0, 2, slots), "pen": adapter(1, 4, slots)}
    mixed, notes = mix(parts, weights, slots)
    assert notes == ()
    assert errors(mixed, parts, weights) < 1e-6, "the scales' own rounding to float32"
    for slot in slots.slots:
        np.testing.assert_array_equal(
            mixed[slot.b_name], np.concatenate([parts["ink"][slot.b_name][:, :2], parts["pen"][slot.b_name][:, :4]], 1)
        )


def test_a_channel_whose_scale_is_zero_takes_no_place() -> None:
    parts = {"ink": adapter(0, 4), "pen": adapter(1, 4)}
    for scales in slot_scales(parts["ink"].scales, SLOTS).values():
        scales[:2] = 0.0
    mixed, notes = mix(parts, {"ink": 0.5, "pen": 0.5})
    assert notes == ()
    assert errors(mixed, parts, {"ink": 0.5, "pen": 0.5}) < 1e-6


@pytest.mark.parametrize("weights", [{"ink": 0.9, "pen": 0.5}, {"ink": 900.0, "pen": -500.0}])
def test_a_sum_of_too_many_ranks_is_the_nearest_and_is_normalised_again(weights: dict[str, float]) -> None:
    parts = {"ink": adapter(0, 5, decay=0.4), "pen": adapter(1, 4, decay=0.4)}
    mixed, notes = mix(parts, weights)
    assert len(notes) == 1
    assert notes[0].startswith("adapters: 'ink' + 'pen' exceed the rank of 3 slots; the nearest sum keeps ")
    for slot in SLOTS.slots:
        true = sum((weight * product(parts[name], slot) for name, weight in weights.items()), np.zeros(()))
        left, values, right = np.linalg.svd(true, full_matrices=False)
        best = left[:, :RANK] * values[:RANK] @ right[:RANK]
        assert np.linalg.norm(product(mixed, slot) - best) <= 1e-4 * np.linalg.norm(true)
        b = np.abs(mixed[slot.b_name].astype(int)).max(axis=(0, *range(2, len(slot.b_shape))))
        assert set(b) == {END}, "every column reaches the end, none goes beyond it"
        rows = [np.linalg.norm(part[slot.a_name].reshape(RANK, -1).astype(float), axis=1).max() for part in parts.values()]
        assert np.linalg.norm(mixed[slot.a_name].reshape(RANK, -1).astype(float), axis=1).max() <= 1.5 * max(rows)


def test_rows_that_adapters_share_take_one_place() -> None:
    parts = {"ink": adapter(0, 4), "pen": adapter(1, 4)}
    for slot in SLOTS.slots:
        parts["pen"][slot.a_name][1:4] = parts["ink"][slot.a_name][:3]
    mixed, notes = mix(parts, {"ink": 1.0, "pen": -2.0})
    assert notes == ()
    assert errors(mixed, parts, {"ink": 1.0, "pen": -2.0}) < 1e-4


def test_a_sum_that_would_keep_too_little_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="use fewer at once or build with --room 2 or --max-rank 12"):
        mix({"ink": adapter(0, 6), "pen": adapter(1, 6)}, {"ink": 1.0, "pen": 1.0})


def test_there_is_no_headroom_to_speak_of_but_all_numbers_end_somewhere() -> None:
    assert headroom(tensors(0, 4), SLOTS) == headroom(adapter(0, 4), SLOTS) == np.inf
    with pytest.raises(
        UsageError, match="adapter 'ink': expected a weight that its scales can be multiplied by, found 1e\\+40; use a smaller"
    ):
        mix({"ink": adapter(0, 4)}, {"ink": 1e40})


def test_scales_that_a_graph_reads_as_integers_are_encoded_and_end_where_their_range_does() -> None:
    reach = 2.0
    encoding = Encoding(bits=16, signed=True, symmetric=True, scale=(reach / END,), zero_point=(0,))
    profile = Profile(encodings={"unet": {"unet.lora_scales": encoding}})
    zeros = zero_buffers(SLOTS, profile)
    assert {zeros[name].dtype for name in SLOTS.scale_inputs()} == {np.dtype(np.int16), np.dtype(np.float32)}
    ink = pad(tensors(0, 4), zeros)
    np.testing.assert_array_equal(ink["unet.lora_scales"], encoding.quantize(ink.scales["unet.lora_scales"]))
    room = headroom(tensors(0, 4), SLOTS, zeros.encodings)
    assert room == pytest.approx(reach / ink.scales["unet.lora_scales"].max(), rel=1e-6)
    mixed, notes = mix_adapters({"ink": ink}, {"ink": -room}, SLOTS, zeros)
    assert notes == ()
    assert np.abs(mixed["unet.lora_scales"].astype(int)).max() == END
    _, notes = mix_adapters({"ink": ink}, {"ink": 1.1 * room}, SLOTS, zeros)
    assert len(notes) == 1
    assert notes[0].startswith("adapters: 'ink' at weight ")
    assert "fits the profile; " in notes[0]
    mixed, notes = mix_adapters({"ink": ink, "pen": pad(tensors(1, 2), zeros)}, {"ink": 0.5, "pen": 50.0}, SLOTS, zeros)
    assert notes[0].endswith("scales of the sum left the profile's range and were clipped; use smaller weights")
