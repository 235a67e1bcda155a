"""Operations on requests: ask for a picture, follow it, fetch it, give it up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from PIL.Image import Image
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from quad.core.errors import InputError, UsageError, mismatch
from quad.runtime.queue.ticket import Ticket
from quad.runtime.request import Request
from quad.serve.api import NewRequest, RequestState
from quad.serve.body import read_struct
from quad.serve.error_response import Refusal, answer
from quad.serve.limits import Limits
from quad.serve.operations.operation import Operation, Query
from quad.serve.operations.stream import EVENT_STREAM, EventStream, PictureFile, until_gone
from quad.serve.pictures import PNG, held_bytes, read_picture
from quad.serve.registry import Entry
from quad.serve.service import Service

LONGEST_WAIT_S = 60.0


async def submit(service: Service, http: HttpRequest) -> Response:
    """Queue a request; what is wrong with it is told now, as far as it can be without running it."""
    service.require_running()
    with service.book.place(), service.budget.account() as account:
        wanted = await read_struct(http, NewRequest, service.limits, account)
        request = await service.in_thread(partial(to_request, wanted, service.limits))
        n_bytes = sum(held_bytes(picture) for picture in (request.image, request.mask_image) if isinstance(picture, Image))
        account.take(n_bytes)
        service.require_running()
        ask = partial(_ask, service, request, wanted)
        entry = service.book.add(await service.in_thread(ask), n_bytes)
        account.keep(n_bytes)
    if await http.is_disconnected():  # nobody knows its id
        service.book.forget(entry)
    return answer(entry.tell(), 202, {"Location": f"/v1/requests/{entry.id}"})


async def state(service: Service, http: HttpRequest) -> Response:
    return answer(service.book.find(http.path_params["id"]).tell())


async def events(service: Service, http: HttpRequest) -> Response:
    """Its steps, from the first one on, as they come, and its final state; who leaves before that takes the request along."""
    return EventStream(service, service.book.find(http.path_params["id"]))


async def image(service: Service, http: HttpRequest) -> Response:
    """The picture; with `wait`, it is waited for, and who leaves while waiting takes the request along."""
    entry, wait_s = service.book.find(http.path_params["id"]), _wait(http)
    if wait_s and not entry.ended:
        with service.stream(), service.book.listening(entry) as stay:
            if await until_gone(http.receive, _ended_within(entry, wait_s)):
                raise ClientDisconnect
            stay()
    picture = entry.picture
    if picture is None:
        raise Refusal(409, entry.error or InputError(mismatch(f"request {entry.id}", "one that is done", entry.state, "wait for its end")))
    return PictureFile(service, picture)


async def cancel(service: Service, http: HttpRequest) -> Response:
    """Give it up at its step, where it has not ended, and forget it."""
    service.book.forget(service.book.find(http.path_params["id"]))
    return Response(status_code=204)


def to_request(wanted: NewRequest, limits: Limits) -> Request:
    """What the scheduler takes.

    Raises:
        InputError: a picture is no picture, or too large.
    """
    image, mask = read_picture(wanted.image, "image", limits.max_pixels), read_picture(wanted.mask_image, "mask", limits.max_pixels)
    return Request(
        prompt=wanted.prompt,
        task=wanted.task,
        adapters=wanted.adapters,
        image=image,
        mask_image=mask,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        seed=wanted.seed,
        negative_prompt=wanted.negative_prompt,
        mask_grow=wanted.mask_grow,
        strength=wanted.strength,
        image_guidance_scale=wanted.image_guidance_scale,
    )


def _ask(service: Service, request: Request, wanted: NewRequest) -> Ticket:
    steps, most = service.pipe.switch.resolve(request).spec.sampler.steps, service.limits.max_steps
    if steps > most:
        raise UsageError(mismatch("num_inference_steps", f"at most {most} on this server", steps, "choose fewer"))
    return service.scheduler.submit(request, priority=wanted.priority, deadline_s=wanted.deadline_s, client=wanted.client)


def _wait(http: HttpRequest) -> float:
    text = http.query_params.get("wait", "0")
    with suppress(ValueError):
        if text.isascii() and 0 <= (seconds := float(text)) <= LONGEST_WAIT_S:
            return seconds
    raise Refusal(400, UsageError(mismatch("wait", f"seconds, 0 to {LONGEST_WAIT_S:g}", repr(text), "choose one in that range")))


async def _ended_within(entry: Entry, wait_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while not entry.ended:
                await entry.change.wait()


OPERATIONS = (
    Operation("POST", "/v1/requests", submit, "Ask for a picture.", 202, RequestState, NewRequest, refusals=(400, 408, 413, 415, 422, 503)),
    Operation("GET", "/v1/requests/{id}", state, "How a request stands.", 200, RequestState, refusals=(404,)),
    Operation("GET", "/v1/requests/{id}/events", events, "Its steps as they are done, then its final state.", 200, EVENT_STREAM,
              refusals=(404, 503)),
    Operation("GET", "/v1/requests/{id}/image", image, "The finished picture.", 200, PNG,
              query=(Query("wait", LONGEST_WAIT_S, "Seconds to wait for it."),), refusals=(400, 404, 409, 503)),
    Operation("DELETE", "/v1/requests/{id}", cancel, "Cancel and forget it.", 204, None, refusals=(404,)),
)  # fmt: skip
