"""Every refusal is JSON, with the HTTP status that fits."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from quad.core.errors import BackendError, BusyError, InputError, QuadError, RefusedError, UnsupportedError
from quad.serve.api import JSON, error_body

RETRY_AFTER_S = 1
_STATUS: Mapping[type[QuadError], int] = {InputError: 400, UnsupportedError: 422, RefusedError: 422, BusyError: 503, BackendError: 503}


class HttpError(Exception):
    """An error with the HTTP status that it is answered with."""

    def __init__(
        self, status: int, error: QuadError, headers: Mapping[str, str] | None = None, *, reasons: Mapping[str, str] | None = None
    ) -> None:
        """Args:
        reasons: see `ErrorBody`.
        """
        super().__init__(str(error))
        self.status, self.error, self.headers, self.reasons = status, error, dict(headers or {}), dict(reasons or {})


def http_error(error: QuadError) -> HttpError:
    """An error of the rooms below, with the status that fits its class."""
    return HttpError(next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500), error)


def error_response(error: HttpError) -> Response:
    """The answer; a client that is told to come again later is told when."""
    headers = {**({"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else {}), **error.headers}
    body = msgspec.structs.replace(error_body(error.error), reasons=error.reasons)
    return json_response(body, error.status, headers)


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A struct, or builtins, as JSON."""
    return Response(msgspec.json.encode(body), status, {"Cache-Control": "no-store", **(headers or {})}, JSON)
