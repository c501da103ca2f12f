"""A scripted pool and scripted workers on real Unix sockets, for tests of the front door."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from backends.base import Settings
from swapd.activity.book import Book
from swapd.activity.store import Store
from swapd.config.schema import Activity, Config, Model, Params, Server, Virtual
from swapd.core.routing import Standing
from swapd.errors import SwapdError, UnknownDeviceError, UnknownModelError, UnknownProfileError
from swapd.http.exchange import Bounds
from swapd.http.keyring import Keyring
from swapd.http.listen import serve
from swapd.http.server import make_app
from swapd.observe.metrics import Metrics
from swapd.pool.lease import Address, Lease, Patience, Place, TcpAddress, Ticket, TokenCounts, UnixAddress
from swapd.pool.routes import Route
from swapd.pool.status import (
    ConfigStatus,
    DeviceStatus,
    FootprintStatus,
    Happening,
    ListedModel,
    ModelStatus,
    ProfileStatus,
    RequestCounts,
    RequestEnded,
    RequestStatus,
    Status,
    WorkerStatus,
)

CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


def model(model_id: str = "org/tiny", **fields: object) -> Model:
    return Model(id=model_id, settings=Settings(), **fields)  # type: ignore[arg-type]


def chat_body(**fields: object) -> dict[str, object]:
    return {"model": "org/tiny", "messages": [{"role": "user", "content": "hello"}], **fields}


@dataclass
class ScriptedDoor:
    """Grants leases on `workers` in turn (the last one again and again) and notes how each lease ended."""

    workers: list[Path | Address] = field(default_factory=list)
    known: list[Model] = field(default_factory=lambda: [model(aliases=("small",))])
    refusal: SwapdError | None = None
    gate: asyncio.Event | None = None
    standing: Place | None = None
    flying: Sequence[RequestStatus] = ()
    is_ready: bool = True
    lost_why: str | None = None
    tickets: list[Ticket] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[tuple[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    lost: list[asyncio.Future[str]] = field(default_factory=list)
    virtual: list[Virtual] = field(default_factory=list)
    stands: dict[str, Standing] = field(default_factory=dict)
    workers_of: dict[str, Path] = field(default_factory=dict)
    """By model, in place of `workers`; likewise the next two."""
    refusals: dict[str, SwapdError] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    profile: str | None = None
    held: int = 0
    """Leases that somebody has or waits for."""
    reports_usage: bool = True
    patience: Patience | None = None
    moves: list[bool] = field(default_factory=list)
    """What was told of answers' bytes: whether they began one."""
    counted: list[TokenCounts] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Requests whose answers broke."""

    @property
    def routes(self) -> ScriptedDoor:
        return self

    def route(self, name: str) -> Route:
        virtual = next((one for one in self.virtual if name == one.id), None)
        if virtual is not None:
            return Route(name, virtual.targets, virtual)
        self.resolve(name)
        return Route(name, (name,))

    def standings(self, names: Sequence[str], needs: object = None, senses: object = ()) -> list[Standing]:
        return [self.stands.get(name, Standing(name)) for name in names]

    def profiles(self) -> list[ProfileStatus]:
        return [ProfileStatus(name=name, active=name == self.profile) for name in ("gaming", "work")]

    async def switch_profile(self, name: str | None) -> None:
        if name not in (None, "gaming", "work"):
            raise UnknownProfileError(f"there is no profile {name!r}")
        self.profile = name

    def resolve(self, name: str) -> Model:
        for known in self.known:
            if name == known.id or name in known.aliases:
                return known
        raise UnknownModelError(f"no model `{name}`; close: {self.known[0].id}", param="model")

    def listed(self) -> Sequence[ListedModel]:
        return [ListedModel(id=one.id, aliases=one.aliases, state="ready", n_ctx=2048) for one in self.known]

    def listed_as(self, name: str) -> ListedModel:
        found = self.resolve(name)
        return next(one for one in self.listed() if one.id == found.id)

    @asynccontextmanager
    async def lease(self, ticket: Ticket) -> AsyncIterator[Lease]:
        self.tickets.append(ticket)
        self.asked.set()
        outcome = "cancelled"
        self.held += 1
        try:
            gate = self.gates.get(ticket.model_id, self.gate)
            if gate is not None:
                await gate.wait()
            refusal = self.refusals.get(ticket.model_id, self.refusal)
            if refusal is not None:
                raise refusal
            lost = asyncio.get_running_loop().create_future()
            self.lost.append(lost)
            if self.lost_why is not None:
                lost.set_result(self.lost_why)
            place: Path | Address | None = self.workers_of.get(ticket.model_id)
            if place is None:
                place = self.workers.pop(0) if len(self.workers) > 1 else self.workers[0]
            address = UnixAddress(place) if isinstance(place, Path) else place
            yield Lease(
                ticket.request_id,
                ticket.model_id,
                1,
                address,
                0.0,
                lost,
                reports_usage=self.reports_usage,
                patience=self.patience,
            )
            outcome = "finished"
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.held -= 1
            self.outcomes.append(outcome)
            self.changed.set()

    def answer_moved(self, lease: Lease, *, began: bool) -> None:
        self.moves.append(began)

    def answer_counted(self, lease: Lease, counts: TokenCounts) -> None:
        self.counted.append(counts)

    def answer_broke(self, lease: Lease) -> None:
        self.broken.append(lease.request_id)

    def place(self, request_id: str) -> Place | None:
        return self.standing

    def in_flight(self) -> Sequence[RequestStatus]:
        return self.flying

    def status(self) -> Status:
        return Status(
            devices=(DeviceStatus(name="RAM", total_bytes=9, budget_bytes=8, reserved_bytes=7, free_bytes=6),),
            models=tuple(self.model_status(known) for known in self.known),
            config=ConfigStatus(path=None, loaded_ago_s=1.0, error=None),
            requests=RequestCounts(accepted=0, waiting=0, running=0, finished=0, failed=0, cancelled=0),
            version="0",
        )

    def model_status(self, known: Model) -> ModelStatus:
        worker = WorkerStatus(pid=1, state="ready", running=1, reserved_bytes={"RAM": 7}, placement="all in RAM")
        return ModelStatus(
            id=known.id,
            state="ready",
            backend="llama_cpp",
            n_ctx=2048,
            running=1,
            waiting=2,
            loads=1,
            load_s=0.5,
            last_used_s=0.0,
            footprint=FootprintStatus(estimated_bytes={"RAM": 5}, measured_bytes={"RAM": 4}),
            last_eviction=None,
            error=None,
            workers=(worker,),
        )

    def ready(self) -> bool:
        return self.is_ready

    async def load(self, model_id: str) -> ModelStatus:
        self.calls.append(("load", model_id))
        return self.model_status(self.resolve(model_id))

    async def unload(self, model_id: str) -> ModelStatus:
        self.calls.append(("unload", model_id))
        return self.model_status(self.resolve(model_id))

    async def pin(self, model_id: str, *, pinned: bool) -> ModelStatus:
        self.calls.append(("pin" if pinned else "unpin", model_id))
        return self.model_status(self.resolve(model_id))

    def keep(self, model_id: str, keep_alive_s: float) -> None:
        self.calls.append((f"keep {keep_alive_s:g}", model_id))

    async def pause(self, device: str) -> DeviceStatus:
        self.calls.append(("pause", device))
        return DeviceStatus(name=device, total_bytes=9, budget_bytes=8, reserved_bytes=0, free_bytes=9, paused=True)

    async def resume(self, device: str) -> DeviceStatus:
        self.calls.append(("resume", device))
        if device != "CUDA0":
            raise UnknownDeviceError(f"there is no device {device!r}")
        return DeviceStatus(name=device, total_bytes=9, budget_bytes=8, reserved_bytes=0, free_bytes=9)

    def logs(self, model_id: str) -> Sequence[str]:
        return self.lines

    async def follow_logs(self, model_id: str) -> AsyncIterator[str]:
        for line in self.lines:
            yield line
        await asyncio.Event().wait()

    async def happenings(self) -> AsyncIterator[Happening]:
        yield Happening(at=1.0, kind="loaded", model="org/tiny", message="it was asked for")
        await asyncio.Event().wait()

    async def requests_ended(self) -> AsyncIterator[RequestEnded]:
        yield RequestEnded(
            id="r1",
            arrived_at=1.0,
            model="org/tiny",
            client="3f9a",
            priority=0,
            outcome="finished",
            waited_s=0.5,
            service_s=2.0,
            prompt_tokens=7,
            cached_tokens=0,
            completion_tokens=4,
        )
        await asyncio.Event().wait()

    async def reached(self, model_id: str) -> None:
        """Returns once a lease of this model is asked for."""
        while not self.tickets or self.tickets[-1].model_id != model_id:
            self.asked.clear()
            await self.asked.wait()

    async def left(self, count: int = 1) -> list[str]:
        """The outcomes, once `count` leases have ended."""
        while len(self.outcomes) < count:
            self.changed.clear()
            await self.changed.wait()
        return self.outcomes


@dataclass
class Call:
    """One request as a scripted worker sees it, and the means to answer it byte by byte."""

    head: str
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def start(self, content_type: str = "text/event-stream", status: str = "200 OK") -> None:
        self.writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def whole(self, body: bytes, status: str = "200 OK", content_type: str = "application/json") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    def die(self) -> None:
        """End as a killed process does: whatever was written arrives, then the connection is gone."""
        self.writer.close()

    async def closed(self) -> None:
        """Returns once the daemon has closed its side."""
        assert await self.reader.read() == b""


Script = Callable[[Call], Awaitable[None]]


@asynccontextmanager
async def worker(path: Path, script: Script) -> AsyncIterator[Path]:
    """A worker on a Unix socket that runs `script` for each request."""
    async with _serving(script, lambda serve_one: asyncio.start_unix_server(serve_one, path)):
        yield path


@asynccontextmanager
async def tcp_worker(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[TcpAddress]:
    """The same on a free port of the loopback interface."""
    async with _serving(script, lambda serve_one: asyncio.start_server(serve_one, "127.0.0.1", 0, ssl=tls)) as server:
        yield TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])


ServeOne = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _serving(
    script: Script, start: Callable[[ServeOne], Awaitable[asyncio.Server]]
) -> AsyncIterator[asyncio.Server]:
    failures: list[BaseException] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.lower() for line in head.splitlines()]
            length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
            await script(Call(head, await reader.readexactly(length), reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as exc:
            failures.append(exc)
        finally:
            writer.close()

    server = await start(serve_one)
    try:
        yield server
    finally:
        server.close()
        assert not failures, failures


@dataclass
class House:
    """A running front door, and a client that knows its address."""

    door: ScriptedDoor
    metrics: Metrics
    http: aiohttp.ClientSession
    url: str
    host: str
    port: int
    book: Book


def book_in_memory(metrics: Metrics | None = None) -> Book:
    """One that no file keeps; to be used with `with`."""
    return Book(Store(None, Activity, (metrics or Metrics()).activity_dropped))


@asynccontextmanager
async def house(
    door: ScriptedDoor,
    *,
    bounds: Bounds | None = None,
    max_body_bytes: int = 1 << 25,
    keyring: Keyring | None = None,
    listen: str = "127.0.0.1:0",
    **server: object,
) -> AsyncIterator[House]:
    """Serve the door on a free port of the loopback interface, or on a Unix socket."""
    settings = Server(max_body_bytes=max_body_bytes, **server)  # type: ignore[arg-type]
    config = Config(server=settings, models={known.id: known for known in door.known})
    metrics = Metrics()
    path = listen.removeprefix("unix:") if listen.startswith("unix:") else None
    with book_in_memory(metrics) as book:
        app = make_app(door, lambda: config, metrics, book, bounds or Bounds(why_lost_s=0.05), keyring)
        async with (
            serve(app, [listen], shutdown_timeout_s=1.0) as addresses,
            aiohttp.ClientSession(
                f"http://{addresses[0]}" if path is None else "http://anything.example",
                connector=aiohttp.TCPConnector() if path is None else aiohttp.UnixConnector(path),
                timeout=aiohttp.ClientTimeout(total=20),
            ) as http,
        ):
            host, _, port = addresses[0].rpartition(":")
            number = int(port) if path is None else 0
            yield House(door, metrics, http, f"http://{addresses[0]}", host, number, book)


def params(**fields: object) -> Params:
    return Params(**fields)  # type: ignore[arg-type]
