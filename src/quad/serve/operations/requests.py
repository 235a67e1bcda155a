"""Operations on requests: ask for a picture, follow it, fetch it, give it up."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextlib import suppress
from functools import partial

from PIL.Image import Image
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from quad.core.errors import InputError, UsageError, mismatch
from quad.runtime.conditioning.size_conditions import require_size_conditions
from quad.runtime.queue.ticket import Ticket
from quad.runtime.request import Request
from quad.serve.api import NewRequest, RequestState
from quad.serve.connections.body import read_struct
from quad.serve.decoding.decoder import SentPicture
from quad.serve.error_response import HttpError, json_response
from quad.serve.limits import Account
from quad.serve.operations.operation import Operation, Query
from quad.serve.operations.stream import EVENT_STREAM, EventStream, PictureFile, until_gone
from quad.serve.pictures import MOST_BYTES_PER_PIXEL, PNG, held_bytes
from quad.serve.request_record import RequestRecord
from quad.serve.service import Service

LONGEST_WAIT_S = 60.0


async def submit(service: Service, http: HttpRequest) -> Response:
    """Queue a request; what is wrong with it is told now, as far as it can be without running it."""
    service.require_running()
    with service.registry.reserve(), service.budget.account() as account:
        body = await read_struct(http, NewRequest, service.limits, account)
        pictures: list[Image | None] = []
        if await until_gone(http.receive, read_pictures(service, http, body, account, pictures)):
            raise ClientDisconnect
        service.require_running()
        ask = partial(_submit, service, to_request(body, *pictures), body)
        n_bytes = sum(map(held_bytes, pictures))
        record = service.registry.add(await service.in_thread(ask), n_bytes)
        account.keep(n_bytes)
    if await http.is_disconnected():  # nobody knows its id
        service.registry.forget(record)
    return json_response(record.to_state(), 202, {"Location": f"/v1/requests/{record.id}"})


async def state(service: Service, http: HttpRequest) -> Response:
    return json_response(service.registry.find(http.path_params["id"]).to_state())


async def events(service: Service, http: HttpRequest) -> Response:
    """Its steps, from the first one on, as they come, and its final state; who leaves before that takes the request along."""
    return EventStream(service, service.registry.find(http.path_params["id"]))


async def image(service: Service, http: HttpRequest) -> Response:
    """The picture; with `wait`, it is waited for, and who leaves while waiting takes the request along."""
    record, wait_s = service.registry.find(http.path_params["id"]), _wait(http)
    if wait_s and not record.ended:
        with service.stream(), service.registry.listening(record) as stay:
            if await until_gone(http.receive, _ended_within(record, wait_s)):
                raise ClientDisconnect
            stay()
    picture = record.picture
    if picture is None:
        raise HttpError(
            409, record.error or InputError(mismatch(f"request {record.id}", "one that is done", record.state, "wait for its end"))
        )
    return PictureFile(service, picture, record.facts)


async def cancel(service: Service, http: HttpRequest) -> Response:
    """Give it up at its step, where it has not ended, and forget it."""
    service.registry.forget(service.registry.find(http.path_params["id"]))
    return Response(status_code=204)


async def read_pictures(service: Service, http: HttpRequest, body: NewRequest, account: Account, pictures: list[Image | None]) -> None:
    """Append the given picture and mask, as decoded. Raises: as `Decoder.decode`; HttpError, 503, for want of memory."""
    for where, data in (("image", body.image), ("mask", body.mask_image)):
        if data is None:
            pictures.append(None)
            continue
        before = account.n_bytes

        def admit(pixels: int, before: int = before) -> None:
            account.give(account.n_bytes - before)  # where it is decoded again
            account.take(pixels * MOST_BYTES_PER_PIXEL)

        picture = await service.decoder.decode(SentPicture(data=data, where=where, caller=caller(http, body), admit=admit))
        account.give(account.n_bytes - before - held_bytes(picture))
        pictures.append(picture)


def caller(http: HttpRequest, body: NewRequest) -> Hashable:
    """The caller: of a socket the process, as the system tells it; on a port the name that a client gives itself."""
    return getattr(http.state, "peer", None) or body.client


def to_request(body: NewRequest, image: Image | None, mask: Image | None) -> Request:
    """The request as the scheduler takes it."""
    return Request(
        prompt=body.prompt,
        task=body.task,
        adapters=body.adapters,
        image=image,
        mask_image=mask,
        num_inference_steps=body.num_inference_steps,
        sampler=body.sampler,
        width=body.width,
        height=body.height,
        guidance_scale=body.guidance_scale,
        seed=body.seed,
        negative_prompt=body.negative_prompt,
        mask_grow=body.mask_grow,
        strength=body.strength,
        image_guidance_scale=body.image_guidance_scale,
        guidance_interval=body.guidance_interval,
        reuse=body.reuse,
        tiny_decoder=body.tiny_decoder,
        prompt_syntax=body.prompt_syntax,
        sizes=body.sizes,
    )


def _submit(service: Service, request: Request, body: NewRequest) -> Ticket:
    steps, most = service.pipe.switch.resolve(request).spec.sampler.steps, service.limits.max_steps
    if steps > most:
        raise UsageError(mismatch("num_inference_steps", f"at most {most} on this server", steps, "choose fewer"))
    require_size_conditions(service.pipe.bundle.manifest.text, request.sizes)
    return service.scheduler.submit(request, priority=body.priority, deadline_s=body.deadline_s, client=body.client, previews=body.previews)


def _wait(http: HttpRequest) -> float:
    text = http.query_params.get("wait", "0")
    with suppress(ValueError):
        if text.isascii() and 0 <= (seconds := float(text)) <= LONGEST_WAIT_S:
            return seconds
    raise HttpError(400, UsageError(mismatch("wait", f"seconds, 0 to {LONGEST_WAIT_S:g}", repr(text), "choose one in that range")))


async def _ended_within(record: RequestRecord, wait_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while not record.ended:
                await record.change.wait()


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/requests",
        handle=submit,
        says="Ask for a picture.",
        status=202,
        gives=RequestState,
        reads=NewRequest,
        error_statuses=(400, 408, 413, 415, 422, 503),
    ),
    Operation(
        method="GET",
        path="/v1/requests/{id}",
        handle=state,
        says="How a request stands.",
        status=200,
        gives=RequestState,
        error_statuses=(404,),
    ),
    Operation(
        method="GET",
        path="/v1/requests/{id}/events",
        handle=events,
        says="Its steps as they are done, then its final state.",
        status=200,
        gives=EVENT_STREAM,
        error_statuses=(404, 503),
    ),
    Operation(
        method="GET",
        path="/v1/requests/{id}/image",
        handle=image,
        says="The finished picture.",
        status=200,
        gives=PNG,
        query=(Query("wait", {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT_S}, "Seconds to wait for it."),),
        error_statuses=(400, 404, 409, 503),
    ),
    Operation(
        method="DELETE",
        path="/v1/requests/{id}",
        handle=cancel,
        says="Cancel and forget it.",
        status=204,
        gives=None,
        error_statuses=(404,),
    ),
)
