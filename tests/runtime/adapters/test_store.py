"""Adapters: who fits, who is refused and with which words; small on disk, whole in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core import profile
from quad.core.errors import CompatibilityError, InputError, UsageError, VerificationError
from quad.core.manifest import AdapterManifest
from quad.core.padding import trim
from quad.core.storage.pack import write_pack
from quad.runtime import AdapterStore, open_bundle
from quad.runtime.adapters import store as adapters
from quad.runtime.adapters.buffers import padded_bytes
from tests.conftest import Spy
from tests.runtime.conftest import SLOTS

Ink = tuple[AdapterManifest, dict[str, NDArray[Any]]]


@pytest.fixture
def store(tiny_bundle: Path) -> AdapterStore:
    return AdapterStore(open_bundle(tiny_bundle))


def test_reads_on_first_use_and_keeps(store: AdapterStore) -> None:
    assert store.names == ("transform", "removal", "sketch")
    assert store.size_bytes() == 0
    first = store.buffers("removal")
    assert store.size_bytes() == padded_bytes(first, store.zeros) > 0
    assert store.buffers("removal") is first
    store.unregister("removal")
    assert store.size_bytes() == padded_bytes(first, store.zeros), "it is in use"
    del first
    assert store.size_bytes() == 0
    assert "removal" in store.names


def test_an_adapter_of_the_bundle_is_known_while_its_update_goes(store: AdapterStore, ink: Ink, tmp_path: Path, spy: Spy) -> None:
    write_pack(tmp_path / "ink.qpack", *ink)
    store.register(tmp_path / "ink.qpack", "sketch")
    ranks = spy(adapters, "open_shipped", lambda *_: store.manifest("sketch").rank)
    store.unregister("sketch")
    assert (ranks, store.manifest("sketch").rank) == ([2], 4)


def test_whoever_loads_drops_or_replaces_is_counted(store: AdapterStore, ink: Ink, tmp_path: Path) -> None:
    write_pack(tmp_path / "ink.qpack", *ink)
    counts = [store.changes]
    for _ in range(2):
        store.register(tmp_path / "ink.qpack", "sketch")
        counts.append(store.changes)
    store.unregister("sketch")
    counts.append(store.changes)
    assert counts == sorted(set(counts))
    store.buffers("removal")
    assert store.changes == counts[-1]


def test_a_mix_is_memory_in_use(tiny_bundle: Path) -> None:
    store = AdapterStore(open_bundle(tiny_bundle), budget_bytes=0)
    one = padded_bytes(store.zeros, store.zeros)
    mixed, _ = store.mix(["transform", "removal"], [0.5, 0.5])
    store.buffers("sketch")
    assert store.size_bytes() == 2 * one, "the mix and the one asked for last"
    del mixed
    assert store.size_bytes() == one


def test_a_profile_is_digested_once_however_many_adapters_there_are(tiny_bundle: Path, ink: Ink, tmp_path: Path, spy: Spy) -> None:
    """It takes longer than all else that registering an adapter does."""
    digested = spy(profile, "digest")
    store = AdapterStore(open_bundle(tiny_bundle))
    write_pack(tmp_path / "ink.qpack", *ink)
    for name in "abc":
        store.register(tmp_path / "ink.qpack", name)
    assert len(digested) == 1


def test_unknown_name_lists_known_ones(store: AdapterStore) -> None:
    with pytest.raises(UsageError, match="one of transform, removal, sketch, found 'ink'"):
        store.buffers("ink")


def test_pack_and_directory_give_the_same(store: AdapterStore, tiny_bundle: Path, ink: Ink, tmp_path: Path) -> None:
    write_pack(tmp_path / "ink.qpack", *ink)
    assert store.register(tmp_path / "ink.qpack") == "ink"
    assert store.register(tiny_bundle / "adapters/sketch", "again") == "again"
    for name, array in ink[1].items():
        np.testing.assert_array_equal(store.buffers("ink")[name], array)
        np.testing.assert_array_equal(store.buffers("again")[name], store.buffers("sketch")[name])
    store.unregister("ink")
    assert "ink" not in store.names


@pytest.mark.parametrize("parent", ["slots", "profile"])
def test_adapter_of_another_bundle(store: AdapterStore, ink: Ink, tmp_path: Path, parent: str) -> None:
    manifest = msgspec.structs.replace(ink[0], parents=ink[0].parents | {parent: "3f2a" * 16})
    write_pack(tmp_path / "ink.qpack", manifest, ink[1])
    text = rf"^adapter 'ink' was packed for {parent} 3f2a3f2a, bundle 'phone' has \w{{8}}: run quad adapt phone ink=ink.safetensors$"
    with pytest.raises(CompatibilityError, match=text):
        store.register(tmp_path / "ink.qpack")
    assert "ink" not in store.names


@pytest.mark.parametrize("change", ["dtype", "rank", "alone"])
def test_tensors_that_are_not_the_slots(store: AdapterStore, ink: Ink, tmp_path: Path, change: str) -> None:
    tensors = dict(ink[1])
    array = tensors.pop("mid.to_q.lora_A")
    if change != "alone":
        tensors["mid.to_q.lora_A"] = array.astype(np.int8) if change == "dtype" else array[:2]
    write_pack(tmp_path / "ink.qpack", ink[0], tensors)
    with pytest.raises(VerificationError, match=r"adapter 'ink'.*pack it again"):
        store.register(tmp_path / "ink.qpack")
    assert "ink" not in store.names


def test_a_padded_file_of_an_older_build_is_the_same_adapter(store: AdapterStore, ink: Ink, tmp_path: Path) -> None:
    padded = write_pack(tmp_path / "padded.qpack", *ink)
    cut = write_pack(tmp_path / "cut.qpack", ink[0], trim(ink[1], SLOTS))
    assert padded.size_bytes == 2 * cut.size_bytes
    store.register(tmp_path / "padded.qpack", "padded")
    store.register(tmp_path / "cut.qpack", "cut")
    for name, array in store.buffers("padded").items():
        np.testing.assert_array_equal(store.buffers("cut")[name], array, strict=True)


def test_slots_that_an_adapter_does_not_have_cost_it_no_memory(store: AdapterStore, ink: Ink, tmp_path: Path) -> None:
    own = {name: array for name, array in trim(ink[1], SLOTS).items() if name.startswith("mid")}
    write_pack(tmp_path / "ink.qpack", ink[0], own)
    buffers = store.buffers(store.register(tmp_path / "ink.qpack"))
    assert buffers["conv_in.lora_A"] is store.zeros["conv_in.lora_A"]
    assert store.size_bytes() == padded_bytes(own, store.zeros)


def test_pickles_and_nothing(store: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "ink.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match="pickled weights; a pickle can run code"):
        store.register(tmp_path / "ink.bin")
    with pytest.raises(InputError, match="found none; check the path"):
        store.register(tmp_path / "no.qpack")


def _function(buffers: dict[str, NDArray[Any]], path: str) -> NDArray[np.int64]:
    """B A of a slot in integers."""
    a, b = (buffers[f"{path}.lora_{x}"].astype(np.int64) for x in "AB")
    return np.asarray(b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1))


def test_sum_of_two_is_exact_when_ranks_fit(store: AdapterStore) -> None:
    mixed, notes = store.mix(["transform", "removal"], [1.0, 1.0])
    assert not notes
    for path in ("conv_in", "mid.to_q"):
        expected = _function(store.buffers("transform"), path) + _function(store.buffers("removal"), path)
        np.testing.assert_array_equal(_function(mixed, path), expected)


def test_integer_weight_is_exact_and_a_fraction_rounds_b_only(store: AdapterStore) -> None:
    own = store.buffers("sketch")
    twice, notes = store.mix(["sketch"], [-2.0])
    assert not notes
    np.testing.assert_array_equal(_function(twice, "mid.to_q"), -2 * _function(own, "mid.to_q"))
    third, _ = store.mix(["sketch"], [0.3])
    np.testing.assert_array_equal(third["mid.to_q.lora_A"], own["mid.to_q.lora_A"])
    assert np.abs(third["mid.to_q.lora_B"] - 0.3 * own["mid.to_q.lora_B"]).max() <= 0.5 + 1e-3


def test_one_adapter_of_weight_one_is_itself(store: AdapterStore) -> None:
    assert store.mix(["sketch"], [1.0])[0] is store.buffers("sketch")
    assert store.mix([], [])[0] is store.zeros
    assert store.mix(["sketch", "removal"], [1.0, 0.0])[0] is store.buffers("sketch")
    assert store.mix(["sketch"], [0.0])[0] is store.zeros
    with pytest.raises(UsageError, match="found 'ink'"):
        store.mix(["ink"], [0.0])


def test_a_sum_goes_by_the_bundle_s_slots(store: AdapterStore, ink: Ink, tmp_path: Path) -> None:
    write_pack(tmp_path / "ink.qpack", *ink)
    store.register(tmp_path / "ink.qpack")
    _, notes = store.mix(["sketch", "removal"], [50.0, 0.2])
    assert "'sketch' at weight 50" in notes[-1] or "weights of the sum" in notes[-1]
    with pytest.raises(CompatibilityError, match=r"need rank \d at slot \S+, the bundle has 4, and .* build with --room 3 or --max-rank 8"):
        store.mix(["transform", "removal", "sketch"], [1.0, 1.0, 1.0])
