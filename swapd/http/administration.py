"""The daemon's own routes: its state, its events and logs, and what people have it do.

Owns the streams without an end. Must never decide what an order means: the pool does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

import structlog
from aiohttp import web
from msgspec import structs

from swapd.api import admin
from swapd.errors import BadRequestError, NotFoundError, QueueFullError, ShuttingDownError, UnknownModelError
from swapd.http import limits
from swapd.http.exchange import Bounds
from swapd.http.record import RECORD
from swapd.http.stream import ClientStream, keeping_alive
from swapd.observe.logs import escape_controls
from swapd.observe.metrics import CONTENT_TYPE, Metrics
from swapd.pool.door import Door
from swapd.pool.status import DeviceStatus, ModelStatus, Status, Unloaded

log = structlog.get_logger(__name__)

MAX_LIVE_VIEWS = 64
"""Endless streams of events and logs at one time."""
MAX_LOG_LINE_CHARS = 8192

_T = TypeVar("_T")


def add_routes(
    app: web.Application, door: Door, cancel: Callable[[str], bool], metrics: Metrics, bounds: Bounds
) -> None:
    """Put the routes into the application. `cancel` ends a request in flight; False if there is none of that id."""
    views = _LiveViews(bounds)
    control = _Admin(door, cancel, metrics, views)
    app.on_shutdown.append(views.end)
    app.router.add_get("/health", control.health)
    app.router.add_get("/metrics", control.metrics)
    app.router.add_get("/swapd/v1/status", control.status)
    app.router.add_get("/swapd/v1/events", control.events, allow_head=False)
    app.router.add_get("/swapd/v1/requests", control.requests, allow_head=False)
    app.router.add_get("/swapd/v1/logs/{id:.+}", control.logs, allow_head=False)
    app.router.add_post("/swapd/v1/models/{id:.+}/load", control.load)
    app.router.add_post("/swapd/v1/models/{id:.+}/unload", control.unload)
    app.router.add_post("/swapd/v1/models/{id:.+}/pin", control.pin)
    app.router.add_post("/swapd/v1/models/{id:.+}/unpin", control.unpin)
    app.router.add_post("/swapd/v1/unload", control.unload_all)
    app.router.add_post("/swapd/v1/requests/{id}/cancel", control.cancel)
    app.router.add_post("/swapd/v1/devices/{name}/pause", control.pause)
    app.router.add_post("/swapd/v1/devices/{name}/resume", control.resume)


class _Admin:
    """The daemon's own routes."""

    def __init__(self, door: Door, cancel: Callable[[str], bool], metrics: Metrics, views: _LiveViews) -> None:
        self._door = door
        self._cancel = cancel
        self._metrics = metrics
        self._views = views
        metrics.watch(door.status)

    async def health(self, _request: web.Request) -> web.Response:
        if not self._door.ready():
            raise ShuttingDownError("the daemon is starting or stopping", retry_after_s=1.0)
        return web.json_response({"status": "ok"})

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def status(self, _request: web.Request) -> web.Response:
        return _document(structs.replace(self._door.status(), in_flight=self._door.in_flight()))

    async def load(self, request: web.Request) -> web.Response:
        model_id = self._model_of(request)
        limits.refuse_form(request)
        return _document(await self._door.load(model_id))

    async def unload(self, request: web.Request) -> web.Response:
        model_id = self._model_of(request)
        limits.refuse_form(request)
        return _document(await self._door.unload(model_id))

    async def pin(self, request: web.Request) -> web.Response:
        model_id = self._model_of(request)
        limits.refuse_form(request)
        return _document(await self._door.pin(model_id, pinned=True))

    async def unpin(self, request: web.Request) -> web.Response:
        model_id = self._model_of(request)
        limits.refuse_form(request)
        return _document(await self._door.pin(model_id, pinned=False))

    async def unload_all(self, request: web.Request) -> web.Response:
        """Every model that has workers and is not another key's. All at a time: each drain takes its requests' time."""
        limits.refuse_form(request)
        loaded = [model.id for model in self._door.status().models if model.workers]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._unload_if_ours(model_id)) for model_id in loaded]
        return _document(Unloaded(models=tuple(model for task in tasks if (model := task.result()) is not None)))

    async def _unload_if_ours(self, model_id: str) -> ModelStatus | None:
        with contextlib.suppress(UnknownModelError):
            return await self._door.unload(self._door.resolve(model_id).id)
        return None

    async def pause(self, request: web.Request) -> web.Response:
        limits.refuse_form(request)
        return _document(await self._door.pause(request.match_info["name"]))

    async def resume(self, request: web.Request) -> web.Response:
        limits.refuse_form(request)
        return _document(await self._door.resume(request.match_info["name"]))

    async def cancel(self, request: web.Request) -> web.Response:
        limits.refuse_form(request)
        request_id = request.match_info["id"]
        if not self._cancel(request_id):
            raise NotFoundError(f"no request {request_id[:64]!r} waits or runs; see in_flight of /swapd/v1/status")
        return web.json_response({"id": request_id, "state": "cancelled"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        return await self._views.show(request, self._door.happenings(), admin.event)

    async def requests(self, request: web.Request) -> web.StreamResponse:
        return await self._views.show(request, self._door.requests_ended(), admin.event)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        model_id = self._model_of(request)
        follow = request.query.get("follow", "0")
        if follow not in ("0", "1"):
            raise BadRequestError("follow: expected 0 or 1", param="follow")
        if follow == "1":
            lines = self._door.follow_logs(model_id)
            return await self._views.show(request, lines, lambda line: admin.log_event(_one_line(line)))
        return web.Response(text=admin.log_text(_one_line(line) for line in self._door.logs(model_id)))

    def _model_of(self, request: web.Request) -> str:
        model_id = self._door.resolve(request.match_info["id"]).id
        request[RECORD].model_id = model_id
        return model_id


def _document(snapshot: Status | ModelStatus | DeviceStatus | Unloaded) -> web.Response:
    return web.Response(body=admin.document(snapshot), content_type="application/json")


def _one_line(line: str) -> str:
    """A worker's line, safe for a terminal."""
    return escape_controls(line[:MAX_LOG_LINE_CHARS])


class _LiveViews:
    """Streams without an end of their own; they end with the application."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._open: set[asyncio.Timeout] = set()

    async def end(self, _app: web.Application) -> None:
        """aiohttp's hook at shutdown."""
        for view in self._open:
            view.reschedule(asyncio.get_running_loop().time())

    async def show(
        self, request: web.Request, items: AsyncIterator[_T], encode: Callable[[_T], bytes]
    ) -> web.StreamResponse:
        """Send each item as an event until the items end, the client leaves or the application stops."""
        if len(self._open) >= MAX_LIVE_VIEWS:
            raise QueueFullError(f"{MAX_LIVE_VIEWS} streams of events or logs are already open", retry_after_s=10.0)
        stream = ClientStream(request, write_deadline_s=self._bounds.write_deadline_s)
        view = asyncio.timeout(None)
        try:
            async with view:
                self._open.add(view)
                await self._send_all(stream, items, encode)
        except TimeoutError:
            log.debug("live view ended by shutdown")
        finally:
            self._open.discard(view)
        return await stream.finish()

    async def _send_all(self, stream: ClientStream, items: AsyncIterator[_T], encode: Callable[[_T], bytes]) -> None:
        await stream.open()
        async with keeping_alive(stream, self._bounds.comment_every_s):
            try:
                async for item in items:
                    await stream.send(encode(item))
            finally:
                if isinstance(items, AsyncGenerator):
                    await items.aclose()
