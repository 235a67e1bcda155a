"""Places for pictures on their way out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from quad.serve.connections.fetching import Fetching


def test_one_client_never_has_all_places_and_all_together_no_more_than_there_are() -> None:
    async def scenario() -> None:
        fetching, in_use = Fetching(8), list[int]()

        async def fetch(peer: int | None, until: asyncio.Event) -> None:
            async with fetching.place(peer):
                in_use.append(peer or 0)
                await until.wait()

        async with AsyncExitStack() as stack:
            end = asyncio.Event()
            stack.callback(end.set)
            tasks = [asyncio.create_task(fetch(1, end)) for _ in range(20)]
            await asyncio.sleep(0)
            assert in_use == [1] * 6
            tasks += [asyncio.create_task(fetch(2, end)) for _ in range(20)]
            await asyncio.sleep(0)
            assert in_use == [1] * 6 + [2] * 2
            tasks[0].cancel()  # its client has gone
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(in_use) == 9
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(in_use) == 40

    asyncio.run(scenario())


def test_where_nobody_knows_whose_a_picture_is_all_places_are_for_all() -> None:
    async def scenario() -> None:
        fetching = Fetching(2)
        async with fetching.place(None), fetching.place(None):
            pass

    asyncio.run(scenario())
