"""From the scheduler's threads to the event loop's: a ticket's steps, and its outcome once at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from quad.core.errors import QuadError
from quad.runtime.queue.ticket import Ticket
from quad.runtime.stages import PipelineOutput
from quad.serve.api import Step


def follow(
    ticket: Ticket,
    loop: asyncio.AbstractEventLoop,
    on_step: Callable[[Step], None],
    on_end: Callable[[PipelineOutput | QuadError], None],
) -> None:
    """Call these on the loop's thread, step by step and once at the end."""

    def post(callback: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has gone, and with it all who would hear of it
            loop.call_soon_threadsafe(callback, *arguments)

    ticket.add_step_callback(lambda event: post(on_step, Step(event.index, event.total, event.timestep)))
    ticket.add_done_callback(lambda ended: post(on_end, outcome_of(ended)))


def outcome_of(ticket: Ticket) -> PipelineOutput | QuadError:
    """The picture or error of a request that has ended; a fault of quad itself is one line too."""
    try:
        return ticket.result()
    except QuadError as error:
        _let_go(error)
        return error
    except Exception as error:
        _let_go(error)
        return QuadError(f"a fault of quad itself, {type(error).__name__}: {error}; report it")


def _let_go(error: BaseException) -> None:
    """The frames where it was raised, and with them the pictures of its request, which nobody would count for as long as it is told."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
