"""Packs over real HTTP: resumed where they were cut off, refused when they come too slowly or do not end."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError

from quad.core.errors import BackendError, UsageError, VerificationError
from quad.delivery import source
from quad.delivery.device.device import Device
from quad.delivery.device.events import Access, Callbacks
from quad.delivery.source import Answer, HttpSource, open_source
from quad.delivery.timeouts import Deadline, Timeouts, metered
from tests.delivery.http_server import REDIRECTS, Served, serving
from tests.delivery.simulator import World, nothing

TIMEOUTS = Timeouts(silence_s=0.2, window_s=0.5)


@pytest.fixture
def served(world: World) -> Iterator[Served]:
    """The world's server over HTTP; the second pack is of 400 kB and on offer."""
    world.add(2, size=100_000)
    with serving(world.server) as server:
        yield server


def _device(world: World, served: Served, came: list[int] | None = None) -> Device:
    whole = world.device()
    callbacks = Callbacks(on_progress=lambda _, there, __: came.append(there) if came is not None else None)
    return Device(
        world.store, whole._platform, access=Access(url=served.url, root=world.root.read_bytes(), timeouts=TIMEOUTS), callbacks=callbacks
    )


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


def test_a_server_that_cannot_is_told_of(world: World, served: Served) -> None:
    served.mode = "broken"
    with pytest.raises(BackendError, match="HTTP status 500"):
        _device(world, served).fetch(["ink"])


@pytest.mark.parametrize("mode", ["wrong-range", "no-part"])
def test_a_server_that_cannot_give_the_rest_is_asked_for_the_whole(world: World, served: Served, mode: str) -> None:
    """Else a download that was cut off once would never come to its end."""
    served.mode = "cut"
    with pytest.raises(BackendError):
        _device(world, served).fetch(["ink"])
    served.mode = mode
    assert _device(world, served).install("ink", nothing).version == 2
    assert [asked is None for asked in _ranges(served)] == [True, False, True]


def test_time_is_given_for_the_bytes_that_come_not_for_those_that_were_asked_for(
    world: World, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without ranges sends all of it again."""
    given: list[float] = []

    def watch(seconds: float, line: socket.socket | None = None) -> Deadline:
        given.append(seconds)
        return Deadline(seconds, line)

    monkeypatch.setattr(source, "Deadline", watch)
    served.mode = "cut"
    with pytest.raises(BackendError):
        _device(world, served).fetch(["ink"])
    whole = given.pop()
    served.mode = "no-range"
    _device(world, served).fetch(["ink"])
    assert given.pop() == whole > (world.home / "pack2.qpack").stat().st_size / TIMEOUTS.lowest_rate


def test_a_server_that_does_not_pick_up_is_no_slow_one(world: World, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(http.client.HTTPConnection, "connect", connect)
    with pytest.raises(BackendError, match=r"found no connection \(timed out\); check the address and the network") as caught:
        _device(world, served).install("ink", nothing)
    assert caught.value.exit_code == 1


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


@pytest.mark.parametrize("mode", ["elsewhere", "elsewhere-by-name"])
def test_a_redirect_to_another_origin_is_not_followed(world: World, served: Served, mode: str) -> None:
    """Else a repository could have a device ask any address of the device's own network."""
    served.mode = mode
    with pytest.raises(BackendError, match=r"found a redirect to http://\S+:9, an origin that neither --url nor --redirect-to names"):
        _device(world, served).fetch(["ink"])


def test_a_named_origin_is_followed_and_remembered_with_the_address(world: World, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = world.device()._platform
    pack = next(path for path in world.pack_files() if ".2." in path.name).relative_to(world.server)
    with serving(world.server) as cdn:
        served.mode = "elsewhere"
        monkeypatch.setitem(REDIRECTS, "elsewhere", f"{cdn.url}/{pack}")
        first = Access(url=served.url, root=world.root.read_bytes(), timeouts=TIMEOUTS, redirects=(cdn.url,))
        Device(world.store, platform, access=first).fetch()
        Device(world.store, platform, access=Access(timeouts=TIMEOUTS)).fetch(["ink:2"])
        assert [path for path, _ in cdn.asked] == [f"/{pack}"]


@pytest.mark.parametrize(
    "origin", ["cdn.example", "ftp://cdn.example", "https://cdn.example/path", "https://u:p@cdn.example", "http://x:y"]
)
def test_what_is_no_origin_is_wrong_usage(origin: str) -> None:
    with pytest.raises(UsageError, match="--redirect-to: expected an"):
        open_source("https://host/repo", None, [origin])


def test_a_host_may_redirect_to_itself_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["https://host/x", Answer(0, iter(()))])
    monkeypatch.setattr(HttpSource, "_ask", lambda *_: next(answers))
    HttpSource("http://host/repo", TIMEOUTS).open("x", 0, 1)


def test_no_server_is_no_attack_and_what_is_installed_runs_on(world: World) -> None:
    with serving(world.server) as gone:
        pass
    before = world.running()
    with pytest.raises(BackendError, match="check the address and the network; what is installed runs on"):
        _device(world, gone).install("ink", nothing)
    assert world.running() == before
    assert world.device().listing()[0].installed == 1


def test_an_address_may_be_a_number_of_the_longer_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def connect(line: http.client.HTTPConnection) -> None:
        asked.append((line.host, line.port))
        raise ConnectionRefusedError

    monkeypatch.setattr(http.client.HTTPConnection, "connect", connect)
    for url in ("http://[::1]/repo", "https://[::1]/repo", "http://[::1]:8080"):
        with pytest.raises(DownloadError, match="no connection"):
            HttpSource(url, TIMEOUTS).open("x", 0, 1)
    assert asked == [("::1", 80), ("::1", 443), ("::1", 8080)]


def test_a_redirect_leads_not_from_https_to_http_however_it_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpSource, "_ask", lambda *_: "http://host/x")
    with pytest.raises(DownloadError, match="a redirect from https to http"):
        HttpSource("HTTPS://host/repo", TIMEOUTS).open("x", 0, 1)


@pytest.mark.parametrize("url", ["ftp://host/repo", "nowhere", "http:///path", "http://[x/", "http://host:x/", "http://host:99999/"])
def test_what_is_no_address_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="--url: expected http"):
        open_source(url)


def test_addresses_are_taken_as_they_are_written(tmp_path: Path) -> None:
    assert open_source(f"file://{tmp_path}").name == str(tmp_path)
    assert open_source("https://host/repo/") == HttpSource("https://host/repo/", Timeouts())


def test_chunks_that_come_fast_enough_are_all_there_is_to_see() -> None:
    clock = iter(range(100))
    chunks = [bytes(2048)] * 60
    assert list(metered(iter(chunks), Timeouts(lowest_rate=1024), lambda: next(clock))) == chunks
