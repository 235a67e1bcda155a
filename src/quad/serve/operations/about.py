"""Operations on the server itself: health, metrics, tasks, the document."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

import quad
from quad.serve.api import Health, Tasks
from quad.serve.error_response import json_response
from quad.serve.metrics import PROMETHEUS, exposition
from quad.serve.operations.operation import Operation
from quad.serve.service import Service


async def health(service: Service, http: HttpRequest) -> Response:
    """Whether it takes requests: 200, or 503 while it stops."""
    live = service.registry.live
    running = sum(record.state == "running" for record in live)
    notes = service.installed.notes if service.installed else ()
    pipe = service.pipe
    body = Health(
        status="stopping" if service.stopping else "ok",
        version=quad.__version__,
        bundle=pipe.bundle.manifest.name,
        engine=pipe.engine,
        queued=len(live) - running,
        running=running,
        notes=notes,
    )
    return json_response(body, 503 if service.stopping else 200)


async def metrics(service: Service, http: HttpRequest) -> Response:
    text = await service.in_thread(partial(exposition, service))
    return Response(text, 200, media_type=PROMETHEUS)


async def tasks(service: Service, http: HttpRequest) -> Response:
    return json_response(Tasks(service.pipe.tasks, service.pipe.bundle.manifest.picture_sizes))


OPERATIONS = (
    Operation(
        method="GET",
        path="/health",
        handle=health,
        says="Whether the server takes requests.",
        status=200,
        gives=Health,
        error_statuses=(503,),
    ),
    Operation(
        method="GET", path="/metrics", handle=metrics, says="Counters and gauges in Prometheus' text format.", status=200, gives=PROMETHEUS
    ),
    Operation(method="GET", path="/v1/tasks", handle=tasks, says="The tasks that a request may name.", status=200, gives=Tasks),
)
