"""Adapters that are installed while a server runs: taken up, switched, dropped; a damaged one harms no other."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
import pytest

from quad import QuadPipeline
from quad.core.errors import BackendError, InputError, UsageError, VerificationError
from quad.core.storage.install_pointers import pointer_path, remove_pointer
from quad.core.storage.pack import write_pack
from quad.runtime.adapters.follow_store import InstalledAdapters
from quad.serve.limits import Limits
from tests.core.storage.hiding import hide
from tests.runtime.conftest import adapter_manifest, adapter_tensors
from tests.serve.conftest import Serve
from tests.serve.device import install_pack


@pytest.fixture
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, threads=1)


@pytest.fixture
def installed(pipe: QuadPipeline, tmp_path: Path) -> InstalledAdapters:
    return InstalledAdapters(tmp_path, pipe.switch.register, pipe.switch.unregister)


def _pixels(pipe: QuadPipeline, name: str) -> Any:
    pipe.set_adapters(name)
    return np.asarray(pipe("car", task="text-to-image").images[0])


def test_new_changed_and_removed_pointers_are_followed(pipe: QuadPipeline, installed: InstalledAdapters, tmp_path: Path, ink: Any) -> None:
    installed.refresh()
    assert (installed.names, installed.notes) == (frozenset(), ())
    install_pack(tmp_path, "ink", ink, 1)
    installed.refresh()
    first = _pixels(pipe, "ink")
    install_pack(tmp_path, "ink", (ink[0], adapter_tensors(10, 2)), 2)
    installed.refresh()
    assert (_pixels(pipe, "ink") != first).any()
    install_pack(tmp_path, "ink", ink, 1)  # rolled back
    installed.refresh()
    np.testing.assert_array_equal(_pixels(pipe, "ink"), first)
    remove_pointer(tmp_path, "ink")
    installed.refresh()
    assert "ink" not in pipe.adapters
    assert (installed.names, installed.notes) == (frozenset(), ())


def test_an_adapter_of_the_bundle_comes_back_when_its_update_is_removed(
    pipe: QuadPipeline, installed: InstalledAdapters, tmp_path: Path
) -> None:
    own = _pixels(pipe, "sketch")
    install_pack(tmp_path, "sketch", (adapter_manifest("sketch", 2), adapter_tensors(11, 2)), 1)
    installed.refresh()
    assert (_pixels(pipe, "sketch") != own).any()
    remove_pointer(tmp_path, "sketch")
    installed.refresh()
    np.testing.assert_array_equal(_pixels(pipe, "sketch"), own)


def test_one_that_does_not_fit_is_told_of_once_and_tried_again_when_it_changes(pipe: QuadPipeline, tmp_path: Path, ink: Any) -> None:
    tried: list[Path] = []

    def take(path: Path, name: str) -> str:
        tried.append(path)
        return pipe.switch.register(path, name)

    installed = InstalledAdapters(tmp_path, take, pipe.switch.unregister)
    stranger = msgspec.structs.replace(ink[0], parents={"slots": "0" * 64, "profile": "0" * 64})
    bad = install_pack(tmp_path, "ink", (stranger, ink[1]), 1)
    good = install_pack(tmp_path, "other", ink, 1)
    for _ in range(3):
        installed.refresh()
    assert tried == [bad, good]
    assert installed.names == {"other"}
    assert len(installed.notes) == 1
    assert "packed for slots 00000000" in installed.notes[0]
    install_pack(tmp_path, "ink", ink, 2)
    installed.refresh()
    assert (installed.names, installed.notes) == ({"ink", "other"}, ())


def test_a_damaged_store_changes_nothing(pipe: QuadPipeline, installed: InstalledAdapters, tmp_path: Path, ink: Any) -> None:
    install_pack(tmp_path, "ink", ink, 1)
    installed.refresh()
    pointer = pointer_path(tmp_path, "ink")
    whole = pointer.read_bytes()
    pointer.write_bytes(whole[:-3])
    installed.refresh()
    assert "a pointer to a pack" in installed.notes[0]
    assert installed.names == {"ink"}
    with pytest.raises(VerificationError):
        installed.register("ink")
    pointer.write_bytes(whole)
    installed.refresh()
    assert installed.notes == ()


def test_a_damaged_pointer_hides_no_other_adapter(pipe: QuadPipeline, installed: InstalledAdapters, tmp_path: Path, ink: Any) -> None:
    cut = install_pack(tmp_path, "cut", (adapter_manifest("cut", 2), adapter_tensors(6, 2)), 1)
    cut.unlink()
    pointer_path(tmp_path, "torn").write_text("{")
    install_pack(tmp_path, "ink", ink, 1)
    installed.refresh()
    assert "ink" in pipe.adapters
    assert [note.count(name) for note, name in zip(installed.notes, ("'cut': expected a pack", "torn.json"), strict=True)] == [1, 1]
    installed.register("ink")
    with pytest.raises(VerificationError, match="of 'cut': expected a pack"):
        installed.register("cut")
    for name in ("cut", "torn"):
        remove_pointer(tmp_path, name)
    installed.refresh()
    assert (installed.names, installed.notes) == ({"ink"}, ())


def test_a_pack_that_cannot_be_read_keeps_a_start_from_the_older_one_and_is_taken_when_it_can(
    pipe: QuadPipeline, installed: InstalledAdapters, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = _pixels(pipe, "sketch")
    pack = install_pack(tmp_path, "sketch", (adapter_manifest("sketch", 2), adapter_tensors(11, 2)), 1)
    for number in (errno.EACCES, errno.EIO):
        with pytest.MonkeyPatch.context() as patch:
            hide(patch, pack, number)
            with pytest.raises(BackendError, match=f"{pack.name}: expected a file that can be read, found {os.strerror(number)}"):
                installed.open()
            caplog.clear()
            for _ in range(3):
                installed.refresh()
            assert os.strerror(number) in installed.notes[0]
            assert len(caplog.records) == 1
        assert installed.names == frozenset()
    installed.refresh()
    assert (installed.names, installed.notes) == ({"sketch"}, ())
    assert (_pixels(pipe, "sketch") != own).any()


def test_what_is_said_of_a_refused_version_goes_with_its_pointer(installed: InstalledAdapters, tmp_path: Path, ink: Any) -> None:
    install_pack(tmp_path, "ink", ink, 1)
    installed.refresh()
    stranger = msgspec.structs.replace(ink[0], parents={"slots": "0" * 64, "profile": "0" * 64})
    for _ in range(2):  # rolled back in between
        install_pack(tmp_path, "ink", (stranger, ink[1]), 2)
        installed.refresh()
        assert "packed for slots 00000000" in installed.notes[0]
        install_pack(tmp_path, "ink", ink, 1)
        installed.refresh()
        assert installed.notes == ()
    install_pack(tmp_path, "new", (stranger, ink[1]), 1)
    installed.refresh()
    remove_pointer(tmp_path, "new")
    installed.refresh()
    assert installed.notes == ()


def test_a_name_that_is_not_installed_is_one_line(installed: InstalledAdapters) -> None:
    with pytest.raises(InputError, match="installed adapter: expected one of none, found 'ink'"):
        installed.register("ink")


def test_a_server_looks_by_itself_and_tells_what_it_could_not_take(serve: Serve, tmp_path: Path, ink: Any) -> None:
    served = serve(real=True)
    service = served.service
    service.installed = InstalledAdapters(tmp_path, service.scheduler.register, service.pipe.switch.unregister)
    install_pack(tmp_path, "ink", (msgspec.structs.replace(ink[0], headroom=2.0), ink[1]), 1)
    while "ink" not in served.client().adapters:
        pass
    (state,) = (one for one in served.call("GET", "/v1/adapters")[1]["adapters"] if one["name"] == "ink")
    assert (state["source"], state["rank"], state["bits"], state["headroom"]) == ("installed", 2, 16, 2.0)
    pointer_path(tmp_path, "ghost").write_text("{}")
    while not served.client().health.notes:
        pass
    assert "ghost" in served.client().health.notes[0]
    assert served.call("POST", "/v1/adapters/ghost/install")[0] == 422
    assert served.call("POST", "/v1/adapters/ink/install") == (200, {"name": "ink"})
    pointer_path(tmp_path, "ghost").unlink()
    assert served.call("POST", "/v1/adapters/ghost/install")[0] == 404


def test_a_store_that_cannot_be_read_is_told_of_and_looked_at_again(
    pipe: QuadPipeline, installed: InstalledAdapters, tmp_path: Path, ink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_store: Path) -> dict[str, Path]:
        raise OSError(5, "Input/output error", str(tmp_path))

    install_pack(tmp_path, "ink", ink, 1)
    with monkeypatch.context() as patch:
        patch.setattr("quad.runtime.adapters.follow_store.inspect_installed", broken)
        installed.refresh()
    assert "Input/output error" in installed.notes[0]
    installed.refresh()
    assert (installed.names, installed.notes) == ({"ink"}, ())


@pytest.mark.parametrize("fails", [False, True])
def test_a_look_that_lasts_or_fails_keeps_no_request_alive(serve: Serve, fails: bool) -> None:
    began, go_on = Event(), Event()

    class Store:
        names, notes = frozenset[str](), ()

        def refresh(self) -> None:
            began.set()
            if fails:
                raise OSError(5, "Input/output error")
            go_on.wait()

    served = serve(limits=Limits(lease_s=0.1))
    served.service.installed = Store()  # type: ignore[assignment]
    try:
        assert began.wait(30)
        served.ask()
        served.tickets[0].wait_until("cancelled")
    finally:
        go_on.set()


def test_what_the_store_takes_up_is_no_clients_any_more(serve: Serve, tmp_path: Path, ink: Any) -> None:
    uploads, store, pack = tmp_path / "uploads", tmp_path / "store", tmp_path / "ink.qpack"
    uploads.mkdir()
    served = serve(real=True, uploads=uploads)
    service, client = served.service, served.client()
    write_pack(pack, ink[0], adapter_tensors(12, 2))
    client.load_lora_weights(pack, "ink")
    service.installed = InstalledAdapters(store, service.scheduler.register, service.pipe.switch.unregister)
    install_pack(store, "ink", ink, 1)
    client.install("ink")
    (state,) = (one for one in served.call("GET", "/v1/adapters")[1]["adapters"] if one["name"] == "ink")
    assert state["source"] == "installed"
    assert not list(uploads.iterdir())
    with pytest.raises(UsageError, match="expected a new one"):
        client.load_lora_weights(pack, "ink")
    with pytest.raises(UsageError, match="one that was uploaded"):
        client.unload("ink")
    assert "ink" in client.adapters
