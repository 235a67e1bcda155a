"""`quad serve` as a process, when it is stopped, out of files, or told to end while something goes on."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quad.core.errors import QuadError
from quad.serve.api import NewRequest, RequestState
from tests.serve import stand_in
from tests.serve.process import ServerProcess

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
HANGS = """
import sys, time
from quad.runtime.queue.scheduler import Scheduler
Scheduler.close = lambda self: time.sleep(600)
from quad.cli.main import main
main()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="q") as name:
        yield Path(name)


def test_a_request_outlives_a_stop_longer_than_its_lease(tiny_bundle: Path, folder: Path) -> None:
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s"), "--lease", "1.5", "--max-steps", "1000") as server:
        http = server.client(timeout_s=60)._http
        request = NewRequest(num_inference_steps=1000)
        ids = [http.json("POST", "/v1/requests", RequestState, request).id for _ in range(8)]
        with ThreadPoolExecutor(1) as pool:
            server.process.send_signal(signal.SIGSTOP)
            asking = pool.submit(http.json, "GET", f"/v1/requests/{ids[-1]}", RequestState)
            time.sleep(2.5)  # more than the lease, and the question waits
            server.process.send_signal(signal.SIGCONT)
            assert asking.result().state in ("queued", "running")


@linux
def test_few_descriptors_are_no_flood_and_callers_are_answered(tiny_bundle: Path, folder: Path) -> None:
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s")) as server, ExitStack() as stack:
        pid = server.process.pid
        most = len(os.listdir(f"/proc/{pid}/fd")) + 20
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        for _ in range(60):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(str(folder / "s"))
        assert server.client()("x").images
        code, said = server.stop()
        assert code == 0
        assert "Traceback" not in said
        assert len(said.splitlines()) <= 2


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_quietly_while_a_picture_takes_its_decoder_long(tiny_bundle: Path, folder: Path, by: signal.Signals) -> None:
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s"), program=stand_in.PROGRAM) as server, ThreadPoolExecutor(2) as pool:
        http = server.client()._http
        body = f'{{"image": "{stand_in.png(stand_in.SLEEPS)}"}}'.encode()
        asking = [pool.submit(http.fetch, "POST", "/v1/requests", body, "application/json") for _ in range(2)]
        while not _decoders(server.process.pid):
            assert not asking[0].done()
        assert server.stop(by) == (0, "")
        for answer in asking:
            with pytest.raises(QuadError):
                answer.result()
    assert not list(folder.iterdir())


def test_it_ends_soon_and_leaves_nothing_whatever_a_thread_of_it_waits_for(tiny_bundle: Path, folder: Path) -> None:
    options = ("--port", "0", "--token-file", str(folder / "t"), "--allow-uploads")
    with ServerProcess(tiny_bundle, *options, program=("-c", HANGS)) as server:
        assert server.stop() == (0, "")  # which waits a minute
    assert not list(folder.iterdir())


def _decoders(parent: int) -> list[str]:
    """Its processes, by the system's list."""
    return [child for task in Path(f"/proc/{parent}/task").iterdir() for child in (task / "children").read_text().split()]
