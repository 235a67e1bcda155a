"""Operations on the server itself: health, metrics, tasks, the document."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

import quad
from quad.serve.api import Health, Tasks
from quad.serve.error_response import answer
from quad.serve.metrics import PROMETHEUS, exposition
from quad.serve.operations.operation import Operation
from quad.serve.service import Service


async def health(service: Service, http: HttpRequest) -> Response:
    """Whether it takes requests: 200, or 503 while it stops."""
    live = service.book.live
    running = sum(entry.state == "running" for entry in live)
    notes = service.installed.notes if service.installed else ()
    pipe, status = service.pipe, "stopping" if service.stopping else "ok"
    body = Health(status, quad.__version__, pipe.bundle.manifest.name, pipe.engine, len(live) - running, running, notes)  # type: ignore[arg-type]
    return answer(body, 503 if service.stopping else 200)


async def metrics(service: Service, http: HttpRequest) -> Response:
    text = await service.in_thread(partial(exposition, service))
    return Response(text, 200, media_type=PROMETHEUS)


async def tasks(service: Service, http: HttpRequest) -> Response:
    return answer(Tasks(service.pipe.tasks))


OPERATIONS = (
    Operation("GET", "/health", health, "Whether the server takes requests.", 200, Health, refusals=(503,)),
    Operation("GET", "/metrics", metrics, "Counters and gauges in Prometheus' text format.", 200, PROMETHEUS),
    Operation("GET", "/v1/tasks", tasks, "The tasks that a request may name.", 200, Tasks),
)
