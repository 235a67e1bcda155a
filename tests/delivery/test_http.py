"""Packs over real HTTP: resumed where they were cut off, refused when they come too slowly or do not end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quad.core.errors import BackendError, UsageError, VerificationError
from quad.delivery.device import Device
from quad.delivery.reports import Access, Ears
from quad.delivery.source import HttpSource, Patience, metered, open_source
from tests.delivery.http_server import Served, serving
from tests.delivery.simulator import World, nothing

PATIENCE = Patience(silence_s=0.2, window_s=0.5)


@pytest.fixture
def served(world: World) -> Iterator[Served]:
    """The world's server over HTTP; the second pack is of 400 kB and on offer."""
    world.add(2, size=100_000)
    with serving(world.server) as server:
        yield server


def _device(world: World, served: Served, came: list[int] | None = None) -> Device:
    whole = world.device()
    ears = Ears(came=lambda _, there, __: came.append(there) if came is not None else None)
    return Device(world.store, whole._host, Access(served.url, world.root.read_bytes(), PATIENCE), ears)


def _ranges(served: Served) -> list[str | None]:
    return [asked for path, asked in served.asked if path.endswith(".qpack")]


@pytest.mark.parametrize("mode", ["honest", "chunked", "redirect"])
def test_a_pack_comes_whole_and_its_progress_is_told(world: World, served: Served, mode: str) -> None:
    served.mode, came = mode, []
    assert _device(world, served, came).install("ink", nothing).version == 2
    pack = (world.home / "pack2.qpack").read_bytes()
    assert world.running()["ink"] == pack
    assert came == sorted(came)
    assert came[-1] == len(pack)


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(world: World, served: Served) -> None:
    served.mode = "cut"
    with pytest.raises(BackendError, match=r"2\.qpack: expected an answer, found .*; check the address and the network"):
        _device(world, served).fetch(["ink"])
    half = sum(path.stat().st_size for path in (world.store / "partial").iterdir())
    assert half == (world.home / "pack2.qpack").stat().st_size // 2
    served.mode = "honest"
    assert _device(world, served).install("ink", nothing).version == 2
    assert _ranges(served) == [None, f"bytes={half}-"]
    assert world.files() == {"trust.json", "installed/ink.json", *(f"packs/{path.name}" for path in (world.store / "packs").iterdir())}


@pytest.mark.parametrize("mode", ["no-range", "honest"])
def test_a_wrong_part_from_before_does_not_stand_in_the_way(world: World, served: Served, mode: str) -> None:
    served.mode = "cut"
    with pytest.raises(BackendError):
        _device(world, served).fetch(["ink"])
    (part,) = (world.store / "partial").iterdir()
    part.write_bytes(bytes(part.stat().st_size))
    served.mode = mode
    assert _device(world, served).install("ink", nothing).version == 2


@pytest.mark.parametrize("mode", ["silent", "silent-headers"])
def test_a_server_that_falls_silent_is_refused(world: World, served: Served, mode: str) -> None:
    served.mode = mode
    before = world.running()
    with pytest.raises(VerificationError, match=r"2\.qpack: expected data at a tolerable rate, found no answer in time \(slow data\)"):
        _device(world, served).install("ink", nothing)
    assert world.running() == before


def test_an_endless_pack_is_cut_and_thrown_away(world: World, served: Served) -> None:
    for path in world.pack_files():
        path.write_bytes(path.read_bytes() + bytes(2**20))
    with pytest.raises(VerificationError, match=r"\(endless data\)"):
        _device(world, served).fetch(["ink"])
    assert not list((world.store / "partial").iterdir())


@pytest.mark.parametrize(("mode", "says"), [("broken", "HTTP status 500"), ("wrong-range", "HTTP status 206")])
def test_a_server_that_cannot_is_told_of(world: World, served: Served, mode: str, says: str) -> None:
    served.mode = "cut"
    with pytest.raises(BackendError):
        _device(world, served).fetch(["ink"])
    served.mode = mode
    with pytest.raises(BackendError, match=says):
        _device(world, served).fetch(["ink"])


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("to-a-file", "a redirect from http to file"),
        ("to-noise", "an answer that makes no sense"),
        ("to-no-port", "an answer that makes no sense"),
        ("for-ever", "more than 5 redirects"),
    ],
)
def test_a_redirect_leads_to_http_or_nowhere(world: World, served: Served, mode: str, says: str) -> None:
    served.mode = mode
    with pytest.raises(BackendError, match=says):
        _device(world, served).fetch(["ink"])


def test_no_server_is_no_attack_and_what_is_installed_runs_on(world: World) -> None:
    with serving(world.server) as gone:
        pass
    before = world.running()
    with pytest.raises(BackendError, match="check the address and the network; what is installed runs on"):
        _device(world, gone).install("ink", nothing)
    assert world.running() == before
    assert world.device().listing()[0].installed == 1


@pytest.mark.parametrize("url", ["ftp://host/repo", "nowhere", "http:///path"])
def test_what_is_no_address_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="--url: expected http"):
        open_source(url)


def test_addresses_are_taken_as_they_are_written(tmp_path: Path) -> None:
    assert open_source(f"file://{tmp_path}").name == str(tmp_path)
    assert open_source("https://host/repo/") == HttpSource("https://host/repo/", Patience())


def test_chunks_that_come_fast_enough_are_all_there_is_to_see() -> None:
    clock = iter(range(100))
    chunks = [bytes(2048)] * 60
    assert list(metered(iter(chunks), Patience(lowest_rate=1024), lambda: next(clock))) == chunks
