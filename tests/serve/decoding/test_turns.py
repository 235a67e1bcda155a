"""Turns at decoders: nobody's picture waits long for a stranger's."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from itertools import pairwise

import pytest

from quad.serve.decoding.turns import Turns

SHARE_S = 0.05


async def _hold(turns: Turns, caller: Hashable, seconds: float = 600.0) -> float:
    """When the turn began."""
    async with turns.turn(caller):
        since = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
    return since


def test_where_others_wait_a_turn_ends_after_its_share_and_not_before() -> None:
    async def run() -> tuple[float, float]:
        turns, begin = Turns(2, SHARE_S), asyncio.get_running_loop().time()
        strangers = [asyncio.create_task(_hold(turns, f"stranger {number}")) for number in range(4)]
        await asyncio.sleep(0)
        honest = asyncio.create_task(_hold(turns, "honest", 0.0))
        with pytest.raises(TimeoutError):
            await strangers[0]
        ended, since = asyncio.get_running_loop().time() - begin, await honest - begin
        for stranger in strangers:
            stranger.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)  # a task that nobody asks is told of by the collector, at any time
        return ended, since

    ended, since = asyncio.run(run())
    assert ended >= SHARE_S
    assert SHARE_S <= since < 60.0


def test_nobody_is_ended_where_nobody_waits_and_one_caller_has_one_turn() -> None:
    async def run() -> int:
        turns = Turns(2, SHARE_S)
        tasks = [asyncio.create_task(_hold(turns, "a caller", 3 * SHARE_S)) for _ in range(3)]
        tasks.append(asyncio.create_task(_hold(turns, "another", 3 * SHARE_S)))
        begins = await asyncio.gather(*tasks)
        assert begins[3] < begins[1]  # beside the first one
        assert all(later - earlier >= 3 * SHARE_S for earlier, later in pairwise(begins[:3]))
        return turns.jobs

    assert asyncio.run(run()) == 0


def test_who_leaves_while_waiting_leaves_nothing() -> None:
    async def run() -> int:
        turns = Turns(1)
        holder, waiter = asyncio.create_task(_hold(turns, "a")), asyncio.create_task(_hold(turns, "b"))
        await asyncio.sleep(0)
        waiter.cancel()
        holder.cancel()
        await asyncio.wait([holder, waiter])
        await _hold(turns, "c", 0.0)
        return turns.jobs

    assert asyncio.run(run()) == 0
