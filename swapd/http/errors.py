"""The frame around every request: its id, its errors as responses, its access line, its count, its row.

Owns the mapping from `SwapdError` and from aiohttp's own refusals to OpenAI's envelope; no other place makes an
error response. Must never show a client the inside of an unexpected error, nor log a prompt or a key.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from swapd.activity.book import Book
from swapd.activity.shapes import Row
from swapd.api.anthropic import errors as anthropic_errors
from swapd.api.ollama import answer as ollama
from swapd.errors import (
    BadRequestError,
    BodyTooLargeError,
    MethodNotAllowedError,
    NotFoundError,
    SwapdError,
    UnauthorizedError,
)
from swapd.http.limits import choose_request_id
from swapd.http.record import RECORD, Record
from swapd.http.stream import WRITE_DEADLINE_S, client_gone, drop_client
from swapd.observe.metrics import Metrics
from swapd.observe.traces import Traces, trace_of

log = structlog.get_logger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
MODEL_HEADER = "X-Swapd-Model"
"""Who served, by its id; what is not ASCII is quoted as in a URL."""
QUEUE_TIME_HEADER = "X-Swapd-Queue-Time"
POSITION_HEADER = "X-Swapd-Position"
EXPECTED_WAIT_HEADER = "X-Swapd-Expected-Wait"
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_CLIENT_CLOSED = 499
"""nginx's code for a request whose client left; no response carries it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


ERROR_FORMS: tuple[tuple[str, Callable[[SwapdError], Mapping[str, Any]]], ...] = (
    ("/v1/messages", anthropic_errors.of),
    ("/api/", ollama.error_document),
)
"""By how a path begins: the error objects of other dialects than OpenAI's."""


def error_response(request: web.Request, error: SwapdError) -> web.Response:
    """An error in the dialect of the path, OpenAI's elsewhere. `Retry-After` is in whole seconds, rounded up."""
    form = next((form for start, form in ERROR_FORMS if request.path.startswith(start)), SwapdError.envelope)
    response = web.json_response(form(error), status=error.status)
    if isinstance(error, UnauthorizedError):
        response.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="swapd"'
    if error.retry_after_s is not None:
        response.headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after_s)))
    return response


def framing(
    metrics: Metrics, book: Book, traces: Traces | None = None, *, write_deadline_s: float = WRITE_DEADLINE_S
) -> Middleware:
    """The outermost middleware: see the module."""
    active: set[str] = set()

    @web.middleware
    async def frame(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = choose_request_id(request.headers.get(REQUEST_ID_HEADER), active)
        record = request[RECORD] = Record(request_id=request_id, endpoint=_endpoint(request))
        record.trace_headers = (
            trace_of(request.headers) if traces is None else traces.began(request_id, request.headers)
        )
        code = None
        active.add(request_id)
        book.began(request_id)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                response = await _answer(request, handler)
                await _deliver(request, response, write_deadline_s)
                code = record.broken or response.status
                return response
            finally:
                if code is None:
                    code = _CLIENT_CLOSED if record.whole is None else record.broken or record.whole
                active.discard(request_id)
                metrics.request_ended(record.model_id, record.endpoint, code)
                row = _row(record, code)
                if traces is not None:
                    traces.ended(request_id, record.endpoint, code, has_row=row is not None)
                book.ended(request_id, row, ran=record.granted)
                _log_access(request, record, code)

    return frame


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """aiohttp's hook before a response starts: the request's id, and no guessing at content types."""
    if (record := request.get(RECORD)) is not None:
        response.headers[REQUEST_ID_HEADER] = record.request_id
        response.headers.update(_queue_headers(record))
    response.headers["X-Content-Type-Options"] = "nosniff"


def _queue_headers(record: Record) -> dict[str, str]:
    """How long it waited and who serves it, or where it stands if its answer begins while it waits."""
    if record.granted:
        return {QUEUE_TIME_HEADER: f"{record.waited_s:.3f}", MODEL_HEADER: quote(record.model_id, safe=_PLAIN)}
    if record.place is None:
        return {}
    headers = {POSITION_HEADER: str(record.place.position)}
    if record.place.expected_wait_s is not None:
        headers[EXPECTED_WAIT_HEADER] = f"{record.place.expected_wait_s:.1f}"
    return headers


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except SwapdError as error:
        return error_response(request, error)
    except web.HTTPException as refusal:
        return _translate(request, refusal)
    except Exception:
        log.exception("request failed unexpectedly")
        return error_response(request, SwapdError("the daemon failed on this request; its log says why"))


def _translate(request: web.Request, refusal: web.HTTPException) -> web.Response:
    """aiohttp's own refusals, from routing and from reading a request."""
    if isinstance(refusal, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(refusal.allowed_methods))
        response = error_response(
            request, MethodNotAllowedError(f"{request.method} is not allowed here, only {allowed}")
        )
        response.headers[hdrs.ALLOW] = allowed
        return response
    if isinstance(refusal, web.HTTPNotFound):
        return error_response(request, NotFoundError(f"there is nothing at {request.method} {request.path[:200]}"))
    if isinstance(refusal, web.HTTPRequestEntityTooLarge):
        return error_response(request, BodyTooLargeError("the body is too large"))
    return error_response(request, BadRequestError(refusal.reason))


async def _deliver(request: web.Request, response: web.StreamResponse, deadline_s: float) -> None:
    """Write a response that has not been written yet, to a client that may take nothing."""
    try:
        async with asyncio.timeout(deadline_s):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        drop_client(request)
        raise client_gone() from None
    except ConnectionError:
        raise client_gone() from None


def _endpoint(request: web.Request) -> str:
    """The route's pattern, so that paths never become labels."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"


def _row(record: Record, code: int) -> Row | None:
    """What is kept of a request; None of one that did not get as far as asking for a place at a worker."""
    if not record.client:
        return None
    return Row(
        ended_at=time.time(),
        request_id=record.request_id,
        model=record.model_id,
        client=record.client,
        endpoint=record.endpoint,
        status=code,
        waited_s=record.waited_s if record.granted else None,
        first_token_s=record.first_token_s,
        total_s=record.age_s(),
    )


def _log_access(request: web.Request, record: Record, code: int) -> None:
    quiet = record.endpoint in ("/health", "/metrics") and code == web.HTTPOk.status_code
    (log.debug if quiet else log.info)(
        "request",
        method=request.method,
        endpoint=record.endpoint,
        model=record.model_id or None,
        key=record.key_name,
        status=code,
        duration_s=round(record.age_s(), 4),
        waited_s=round(record.waited_s, 4),
        first_token_s=None if record.first_token_s is None else round(record.first_token_s, 4),
        events=record.events,
    )
