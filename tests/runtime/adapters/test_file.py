"""Between disk and memory: mapped, hashed once, known again until they are written to, and no more of them than there is room for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quad.core.errors import InputError, UsageError, VerificationError
from quad.core.padding import trim
from quad.core.storage.pack import write_pack
from quad.core.storage.tensor_file import FileContent
from quad.runtime import AdapterStore, bundle, open_bundle
from quad.runtime.adapters import file as adapter_file
from quad.runtime.adapters.buffers import AdapterMix, padded_bytes, zero_buffers
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.graph import FairLock, Graph, Slots
from tests.conftest import Spy
from tests.runtime.conftest import SLOTS, adapter_manifest, adapter_tensors
from tests.runtime.tiny_unet import RANK

NOISE_BYTES = 1_000_000  # what an interpreter takes and gives back as it runs
ONE = padded_bytes(zero_buffers(SLOTS), zero_buffers(SLOTS))


@pytest.fixture
def store(tiny_bundle: Path) -> Iterator[AdapterStore]:
    store = AdapterStore(open_bundle(tiny_bundle))
    yield store
    store.close()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the store is a minute ahead: files that were written just now have settled."""
    now = time.time_ns
    for module in (adapter_file, bundle):
        monkeypatch.setattr(module, "time_ns", lambda: now() + 60 * 10**9)


@pytest.fixture
def hashed(spy: Spy) -> list[str]:
    """Files whose bytes were hashed, in order."""
    files = spy(FileContent, "sha256", lambda file: file.where)
    return spy(adapter_file, "content_digest", lambda _tensors: "pack", into=files)


def packed(path: Path, seed: int, rank: int = RANK, name: str = "ink") -> Path:
    write_pack(path, adapter_manifest(name, rank), trim(adapter_tensors(seed, rank), SLOTS))
    return path


def test_an_adapter_of_the_slots_rank_is_the_mapped_file_and_a_smaller_one_a_copy(store: AdapterStore, tmp_path: Path) -> None:
    store.register(packed(tmp_path / "whole.qpack", 1), "whole")
    store.register(packed(tmp_path / "small.qpack", 1, rank=2), "small")
    assert not any(array.flags.writeable for array in store.buffers("whole").values())
    assert all(array.flags.owndata is False for array in store.buffers("whole").values())
    assert all(array.flags.writeable for array in store.buffers("small").values())
    assert store.size_bytes() == 2 * ONE


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("kind", ["pack", "directory"])
def test_a_file_is_hashed_once(store: AdapterStore, hashed: list[str], tmp_path: Path, tiny_bundle: Path, kind: str) -> None:
    name = store.register(packed(tmp_path / "ink.qpack", 1) if kind == "pack" else tiny_bundle / "adapters/sketch", "ink")
    first = {key: array.copy() for key, array in store.buffers(name).items()}
    store.close()
    for key, array in store.buffers(name).items():
        np.testing.assert_array_equal(array, first[key])
    assert len(hashed) == 1


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("verify", [True, False])
def test_an_adapter_of_a_bundle_is_hashed_when_that_is_opened(bundle_copy: Path, hashed: list[str], verify: bool) -> None:
    store = AdapterStore(open_bundle(bundle_copy, verify))
    for _ in range(2):
        store.buffers("sketch")
        store.close()
    assert len(hashed) == (0 if verify else 1)
    file = bundle_copy / "adapters/sketch/adapter.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match="the file was changed or damaged"):
        store.buffers("sketch")


def test_a_file_that_was_just_written_is_hashed_again(store: AdapterStore, hashed: list[str], tmp_path: Path) -> None:
    store.register(packed(tmp_path / "ink.qpack", 1))
    store.buffers("ink")
    assert len(hashed) == 2


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("kind", ["pack", "directory"])
@pytest.mark.parametrize("how", ["in place", "another file", "in place, time set back"])
def test_a_byte_turned_after_it_was_loaded_is_refused(store: AdapterStore, tmp_path: Path, bundle_copy: Path, kind: str, how: str) -> None:
    path = packed(tmp_path / "ink.qpack", 1) if kind == "pack" else bundle_copy / "adapters/sketch/adapter.safetensors"
    store.register(path if kind == "pack" else path.parent, "ink")
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if how == "another file":
        path.unlink()
    path.write_bytes(data)
    if how == "in place, time set back":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"expected digest \w{8}, found \w{8}; the file was changed or damaged"):
            store.buffers("ink")


def test_another_pack_under_the_same_name_on_disk_is_not_taken_for_it(store: AdapterStore, tmp_path: Path) -> None:
    store.register(packed(tmp_path / "ink.qpack", 1))
    packed(tmp_path / "ink.qpack", 2)
    with pytest.raises(VerificationError, match="expected the pack that was loaded as 'ink', found another; load it again"):
        store.buffers("ink")
    store.register(tmp_path / "ink.qpack")
    np.testing.assert_array_equal(store.buffers("ink")["mid.to_q.lora_A"], adapter_tensors(2, RANK)["mid.to_q.lora_A"])


def test_a_replaced_or_deleted_file_does_not_reach_who_uses_it(store: AdapterStore, tmp_path: Path) -> None:
    store.register(packed(tmp_path / "ink.qpack", 1))
    running = store.buffers("ink")
    os.replace(packed(tmp_path / "new.qpack", 2), tmp_path / "ink.qpack")
    store.register(tmp_path / "ink.qpack")
    (tmp_path / "ink.qpack").unlink()
    for name, array in adapter_tensors(1, RANK).items():
        np.testing.assert_array_equal(running[name], array)
    with pytest.raises(InputError, match="a file that can be read, found No such file"):
        store.buffers("ink")


@pytest.mark.parametrize("mapped", [False, True])
def test_only_what_is_the_device_s_own_is_mapped(store: AdapterStore, tmp_path: Path, mapped: bool) -> None:
    """A file that is written to, or cut, changes what is mapped of it; what was read stays."""
    store.register(packed(tmp_path / "ink.qpack", 1), mapped=mapped)
    running = store.buffers("ink")
    with (tmp_path / "ink.qpack").open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(bytes(1000))
    same = all(np.array_equal(running[name], array) for name, array in adapter_tensors(1, RANK).items())
    assert same is not mapped


def test_registered_adapters_take_no_memory(store: AdapterStore, tmp_path: Path) -> None:
    for number in range(20):
        store.register(packed(tmp_path / "ink.qpack", 1), f"ink{number}")
    found = store.metrics()
    assert (found.registered, found.loaded_bytes, found.loads) == (23, 0, 0)


def test_what_a_graph_is_bound_to_is_not_taken_away_and_is_freed_when_it_is_bound_to_another(tiny_bundle: Path) -> None:
    session = open_engine("ort", ("ort",), "w8a16").load(tiny_bundle / "unet/model.onnx", 1)
    store = AdapterStore(open_bundle(tiny_bundle), budget_bytes=0)
    graph = Graph(lambda: session, Slots("unet", SLOTS.input_shapes()), resident=True, budget=FairLock())
    with graph.loaded():
        pass
    step = {name: np.ones([n or 1 for n in shape], np.float32) for name, shape in session.inputs.items() if "lora" not in name}
    graph.bind(AdapterMix(weights={}, buffers=store.buffers("sketch")))
    expected = session.run(step)
    for other in ("removal", "transform", "removal"):
        store.buffers(other)
        np.testing.assert_array_equal(session.run(step), expected)
        assert store.size_bytes() == 2 * ONE, "the one in use and the last one asked for"
    assert store.metrics().evictions == 3
    graph.bind(AdapterMix(weights={}, buffers=store.buffers("removal")))
    assert store.size_bytes() == ONE
    graph.bind(AdapterMix(weights={}, buffers=store.buffers("sketch")))
    np.testing.assert_array_equal(session.run(step), expected)


def test_a_budget_below_zero_is_none(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="adapter budget: expected a whole number, 0 or more, found -1"):
        AdapterStore(open_bundle(tiny_bundle), -1)


def test_preloaded_it_is_a_hit(store: AdapterStore) -> None:
    store.preload("sketch")
    store.preload("removal")
    with pytest.raises(UsageError, match="found 'ghost'"):
        store.preload("ghost")
    store._ahead.shutdown()  # both have been read
    store.buffers("sketch")
    found = store.metrics()
    assert (found.hits, found.misses, found.loads, found.loaded_bytes) == (1, 0, 2, 2 * ONE)
    assert found.load_ms > 0
    store.close()
    store.preload("sketch")
    assert store.size_bytes() == 0, "a hint to a closed store does nothing"


def test_an_error_of_preloading_shows_when_it_is_used(store: AdapterStore, tmp_path: Path) -> None:
    store.register(packed(tmp_path / "ink.qpack", 1))
    (tmp_path / "ink.qpack").unlink()
    store.preload("ink")
    store._ahead.shutdown()
    with pytest.raises(InputError, match="a file that can be read"):
        store.buffers("ink")
    store.unregister("ink")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read there")
def test_memory_follows_the_budget_not_the_number_of_adapters(tmp_path: Path) -> None:
    script = Path(__file__).with_name("switch_many.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True, timeout=200)
    found = json.loads(done.stdout)
    most = max(found["over_base_bytes"])
    assert most >= found["budget_bytes"] - found["adapter_bytes"], "adapters in memory do show"
    assert most <= 1.05 * found["budget_bytes"] + NOISE_BYTES
    half = len(found["over_base_bytes"]) // 2
    early, late = found["over_base_bytes"][half : half + half // 2], found["over_base_bytes"][half + half // 2 :]
    assert np.median(late) - np.median(early) <= NOISE_BYTES
    assert found["after_bytes"] <= NOISE_BYTES, "closed, a store gives all of it back"
