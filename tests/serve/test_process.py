"""`quad serve` as a process: found, used, stopped, killed, and started again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad import QuadPipeline
from quad.core.errors import BackendError, StoppedError
from quad.serve import QuadClient
from tests.serve.device import install_pack
from tests.serve.process import PATIENCE_S, ServerProcess, start

SLOW = {"num_inference_steps": 1000}  # long enough to be met while it runs
ENOUGH_STEPS = ("--max-steps", "1000")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a name that is short enough for a socket's address."""
    with TemporaryDirectory(prefix="q") as name:
        yield Path(name)


def _until(true: Any) -> None:
    """For what another process does in its own time."""
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until


def test_it_serves_and_leaves_nothing_after_sigterm(tiny_bundle: Path, folder: Path, picture: NDArray[np.uint8]) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s")) as server:
        made = server.client()("make it night", task="transform", image=picture, seed=4)
        np.testing.assert_array_equal(made.images[0], pipe("make it night", task="transform", image=picture, seed=4).images[0])
        again = start(tiny_bundle, "--socket", str(folder / "s"))
        said = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 1
        assert "expected no server there yet, found a running one" in said[1]
        assert server.client().health.status == "ok"
        assert server.stop() == (0, "")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_what_runs_and_is_clean(tiny_bundle: Path, folder: Path, by: signal.Signals) -> None:
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s"), *ENOUGH_STEPS) as server:

        def stop(_client: QuadClient, index: int, _timestep: float, _kwargs: dict[str, Any]) -> None:
            if index == 0:
                server.process.send_signal(by)

        with pytest.raises(StoppedError, match="one that was stopped"):
            server.client()("x", **SLOW, callback_on_step_end=stop)
        _, said = server.process.communicate(timeout=PATIENCE_S)
        assert (server.process.returncode, said) == (0, "")
    assert not list(folder.iterdir())


def test_a_killed_clients_work_is_freed(tiny_bundle: Path, folder: Path) -> None:
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s"), *ENOUGH_STEPS) as server:
        client = server.client()
        code = f"from quad.serve import QuadClient; QuadClient({str(folder / 's')!r})('x', num_inference_steps=1000, " \
               "callback_on_step_end=lambda c, i, t, k: print(i, flush=True))"  # fmt: skip
        app = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert app.stdout is not None
        assert app.stdout.readline() == "0\n"
        app.kill()
        app.communicate()
        _until(lambda: client.health.running == 0)
        assert 'quad_requests_total{state="cancelled"} 1' in client._http.fetch("GET", "/metrics").decode()
        assert client("x").task == "text-to-image"


@pytest.mark.parametrize("at", [0, 3])
def test_a_server_that_is_killed_is_one_line_for_its_clients(tiny_bundle: Path, folder: Path, at: int) -> None:
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s"), *ENOUGH_STEPS) as server:

        def kill(_client: QuadClient, index: int, _timestep: float, _kwargs: dict[str, Any]) -> None:
            if index == at:
                server.process.kill()

        with pytest.raises(BackendError):
            server.client()("x", **SLOW, callback_on_step_end=kill)


def test_tcp_asks_for_the_token_and_takes_it_along(tiny_bundle: Path, folder: Path) -> None:
    with ServerProcess(tiny_bundle, "--port", "0", "--token-file", str(folder / "t")) as server:
        token = (folder / "t").read_text().strip()
        assert token not in str(server.told)
        assert server.client()("x").images
        with pytest.raises(Exception, match="Bearer and this server's token"):
            QuadClient(server.told["address"]).health  # noqa: B018
        assert server.stop() == (0, "")
    assert not list(folder.iterdir())


def test_killed_at_any_point_the_next_one_runs_and_nothing_is_left(tiny_bundle: Path, folder: Path) -> None:
    draw, path = random.Random(0), folder / "s"
    for _ in range(4):  # more of them: benchmarks/kill_serve.py
        process = start(tiny_bundle, "--socket", str(path), "--allow-uploads")
        time.sleep(draw.uniform(0, 1.5))  # not to wait for something: the point of the kill is drawn
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    with ServerProcess(tiny_bundle, "--socket", str(path)) as server:
        assert server.client()("x").images
        assert sorted(found.name for found in folder.iterdir()) == ["s", "s.lock"]
        assert server.stop() == (0, "")
    assert not list(folder.iterdir())


def test_an_adapter_installed_while_a_request_runs_is_taken_up_and_disturbs_nothing(tiny_bundle: Path, folder: Path, ink: Any) -> None:
    store = folder / "store"
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    with ServerProcess(tiny_bundle, "--socket", str(folder / "s"), "--store", str(store), *ENOUGH_STEPS) as server:
        client = server.client()
        assert "ink" not in client.adapters

        def install(_client: QuadClient, index: int, _timestep: float, _kwargs: dict[str, Any]) -> None:
            if index == 0:
                install_pack(store, "ink", ink, 1)
                server.client().install("ink")

        made = client("car", **SLOW, callback_on_step_end=install)
        np.testing.assert_array_equal(made.images[0], pipe("car", **SLOW).images[0])
        assert "ink" in client.adapters
        client.set_adapters("ink")
        pipe.load_lora_weights(next((store / "packs").iterdir()), "ink")
        pipe.set_adapters("ink")
        np.testing.assert_array_equal(client("car").images[0], pipe("car").images[0])
        assert server.stop() == (0, "")


_STOPPED = """
import signal, sys
from contextlib import nullcontext, suppress
from pathlib import Path
from quad import QuadPipeline
from quad.serve.launch import ServeOptions, launch
from quad.serve.endpoint import socket_endpoint

by, swallowed, announced, whole = int(sys.argv[3]), sys.argv[4] == "True", [], QuadPipeline.from_pretrained

def opened(*given, **options):
    with suppress(SystemExit) if swallowed else nullcontext():  # as in a callback from an engine's own code
        signal.raise_signal(by)
    return whole(*given, **options)

QuadPipeline.from_pretrained = opened
before = signal.getsignal(by)
try:
    options = ServeOptions(bundle=Path(sys.argv[1]), threads=1)
    launch(options, socket_endpoint(Path(sys.argv[2]) / "s"), lambda *told: announced.append(told))
    left = False
except SystemExit as stopped:
    left = stopped.code == 0
assert left is not swallowed
assert (announced, signal.getsignal(by)) == ([], before)
"""


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_stop_while_the_bundle_is_opened_is_clean_even_where_its_exception_is_lost(
    tiny_bundle: Path, folder: Path, by: signal.Signals, swallowed: bool
) -> None:
    """In a process of its own: a signal is for all that a process has loaded."""
    arguments = [str(tiny_bundle), str(folder), str(int(by)), str(swallowed)]
    done = subprocess.run([sys.executable, "-c", _STOPPED, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(folder.iterdir())
