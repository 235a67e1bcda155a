"""Reading what a client sends, no more of it than allowed and no longer than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from starlette.requests import Request

from quad.core.errors import InputError, UsageError, mismatch
from quad.serve.api import JSON, LONGEST_PROMPT
from quad.serve.error_response import HttpError
from quad.serve.limits import Account, Limits

T = TypeVar("T")
_MOST_COLONS = 2 * LONGEST_PROMPT + 1000


def require_type(http: Request, media_type: str) -> None:
    """Raises:
    HttpError: 415, the body is of another type.
    """
    actual = http.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if actual != media_type:
        raise HttpError(415, InputError(mismatch("Content-Type", media_type, repr(actual), "name the type of the body")))


async def chunks(http: Request, most_bytes: int, timeout_s: float) -> AsyncIterator[bytes]:
    """The body piece by piece.

    Raises:
        HttpError: 413, it is larger than `most_bytes`, by its header or as it comes; 408, it takes longer than `timeout_s`.
    """
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise _too_large(most_bytes, length)
    read, stream, until = 0, aiter(http.stream()), asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(until):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            error = InputError(mismatch("body", f"all of it within {timeout_s:g} s", "less", "send it faster"))
            raise HttpError(408, error, {"Connection": "close"}) from None
        read += len(chunk)
        if read > most_bytes:
            raise _too_large(most_bytes, "more")
        yield chunk


async def read_struct(http: Request, kind: type[T], limits: Limits, account: Account) -> T:
    """The JSON body as a struct.

    Raises:
        HttpError: 415, 413, 408, 503 for want of memory, 400 for what is no JSON of that kind.
    """
    require_type(http, JSON)
    data = bytearray()
    async for chunk in chunks(http, limits.max_body_bytes, limits.body_timeout_s):
        account.take(len(chunk))
        data += chunk
    if (colons := data.count(b":")) > _MOST_COLONS:  # a body is long by its pictures, whose base64 has none: this is a table without end
        raise HttpError(400, UsageError(mismatch("body", f"a {kind.__name__}, at most {_MOST_COLONS} colons", colons, "see /openapi.json")))
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise HttpError(
            400, UsageError(mismatch("body", f"a {kind.__name__}", f"something else ({error})", "see /openapi.json"))
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, InputError(mismatch("body", "JSON", f"something else ({error})", "mend it"))) from error


def _too_large(most_bytes: int, actual: str) -> HttpError:
    error = InputError(mismatch("body", f"at most {most_bytes} bytes", actual, "make the pictures smaller, or send a smaller pack"))
    return HttpError(413, error, {"Connection": "close"})
