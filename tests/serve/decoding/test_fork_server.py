"""Decoders are forked, see pictures of one caller alone, and none outlives its server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from quad.core.errors import BackendError
from quad.serve.decoding.fork_server import Fork, ForkServer, worker_command

T = TypeVar("T")


def _run(work: Callable[[ForkServer], Awaitable[T]], command: tuple[str, ...] = ()) -> T:
    async def run() -> T:
        server = ForkServer(command or worker_command())
        try:
            return await work(server)
        finally:
            await server.end()

    return asyncio.run(run())


async def _at_end(fork: Fork) -> bytes:
    return await asyncio.get_running_loop().sock_recv(fork.stream, 1)


def test_a_decoder_is_used_again_for_its_caller_alone_and_few_are_kept() -> None:
    async def work(server: ForkServer) -> None:
        forks = {name: await server.begin(name) for name in ("a", "b", "c")}
        for name, fork in forks.items():
            server.keep(fork, name)
        assert await server.begin("b") is forks["b"]
        assert await server.begin("c") is forks["c"]
        another = await server.begin("c")
        assert another not in forks.values()
        for fork in (another, forks["b"], forks["c"]):
            fork.end()
        assert forks["a"].stream.fileno() == -1
        ended = await forks["a"].end()
        assert ended is not None
        assert ended.errno == 0

    _run(work)


def test_one_that_is_killed_is_told_of_and_the_next_server_starts() -> None:
    async def work(server: ForkServer) -> None:
        decoder = await server.begin("a")
        server.keep(await server.begin("b"), "b")
        server.kill()
        assert await _at_end(decoder) == b""
        assert await decoder.end() is None
        server.keep(decoder, "a")  # of a server that is gone
        after = await server.begin("b")
        ended = await after.end()
        assert ended is not None
        assert ended.returncode in (0, -signal.SIGKILL)

    _run(work)


def test_decoders_end_with_their_server() -> None:
    async def work(server: ForkServer) -> None:
        decoder = await server.begin("a")
        assert server._process is not None
        server._process._orders.shutdown(2)  # as where the quad server is gone
        assert await _at_end(decoder) == b""
        decoder.end()

    _run(work)


def test_one_that_cannot_start_is_one_line() -> None:
    async def work(server: ForkServer) -> None:
        with pytest.raises(BackendError, match="decoder: expected a process of its own, found one that ended"):
            await server.begin("a")

    _run(work, worker_command("raise SystemExit(1)"))
