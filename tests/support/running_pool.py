"""A real pool with scripted workers, and a small client that speaks to them over their sockets."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.scripted_backend import ScriptedBackend, ScriptedSettings

from backends.command import CommandBackend
from backends.llama_server.backend import LlamaServerBackend
from backends.remote import RemoteBackend
from swapd.config.schema import Budget, Config, Memory, Model, Queue, Server, Turns
from swapd.core.spec import RAM
from swapd.pool.devices import Device, Machine
from swapd.pool.learned import Store
from swapd.pool.lease import Lease, TcpAddress, Ticket, UnixAddress
from swapd.pool.pool import Pool

MIB = 1024 * 1024
HOST = Device(RAM, "host memory", 8192 * MIB, 8192 * MIB)
HOST_ONLY = Machine((HOST,))


@dataclass
class Counts:
    """A listener that writes down what it hears."""

    loads: list[tuple[str, str]] = field(default_factory=list)
    departures: list[tuple[str, str, bool]] = field(default_factory=list)
    tokens: list[tuple[str, int, int, int]] = field(default_factory=list)

    def load_ended(self, model_id: str, outcome: str, load_s: float) -> None:
        self.loads.append((model_id, outcome))

    def worker_left(self, model_id: str, reason: str, *, evicted: bool) -> None:
        self.departures.append((model_id, reason, evicted))

    def tokens_served(self, model_id: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        self.tokens.append((model_id, prompt_tokens, cached_tokens, completion_tokens))

    def queue_left(self, model_id: str, waited_s: float) -> None:
        pass


def model_file(directory: Path, name: str, text: str = "model") -> Path:
    path = directory / f"{name}.model"
    path.write_text(text)
    return path


def scripted(directory: Path, name: str, policy: dict[str, object] | None = None, **settings: object) -> Model:
    path = directory / f"{name}.model"
    if not path.exists():
        path.write_text("model")
    return Model(
        id=name,
        backend="scripted",
        settings=ScriptedSettings(path=path, **settings),  # type: ignore[arg-type]
        **(policy or {}),  # type: ignore[arg-type]
    )


def config(
    *models: Model, budget_mib: int = 250, max_waiting: int = 256, drain_s: float = 5.0, turn_s: float = 0.0
) -> Config:
    return Config(
        server=Server(drain_s=drain_s),
        memory=Memory(budget={RAM: Budget(size_bytes=budget_mib * MIB)}, reserve_bytes=0),
        queue=Queue(max_waiting=max_waiting),
        turns=Turns(turn_s=turn_s),
        models={model.id: model for model in models},
    )


@asynccontextmanager
async def running_pool(
    runtime_dir: Path,
    configuration: Config,
    machine: Machine = HOST_ONLY,
    store: Store | None = None,
    backend: ScriptedBackend | None = None,
) -> AsyncIterator[tuple[Pool, Counts]]:
    """A pool in force; leaving shuts it down and asserts that no worker process is left."""
    counts = Counts()
    store = store or Store(None)
    backends = {
        "scripted": backend or ScriptedBackend(),
        "remote": RemoteBackend(),
        "command": CommandBackend(),
        "llama_server": LlamaServerBackend(),
    }
    pool = Pool(backends, machine, store, runtime_dir, counts, "test")
    pids: set[int] = set()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(pool.run())
        await pool.configure(configuration)
        try:
            yield pool, counts
        finally:
            pids |= {worker.pid for one in pool.status().models for worker in one.workers if worker.pid}
            pool.shutdown()
            async with asyncio.timeout(20):
                await running
    store.close()
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet reaped by its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def gone(pid: int) -> None:
    """Wait until a process has ended, of whosever child it is."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def ticket(model_id: str, request_id: str = "r", client: str = "c") -> Ticket:
    return Ticket(request_id, model_id, client)


async def ask(lease: Lease, words: str = "", *, stream: bool = False) -> bytes:
    """Send one request to a leased worker and read the whole answer, headers left out."""
    if isinstance(lease.address, UnixAddress):
        reader, writer = await asyncio.open_unix_connection(str(lease.address.path))
    else:
        assert isinstance(lease.address, TcpAddress)
        reader, writer = await asyncio.open_connection(lease.address.host, lease.address.port)
    try:
        body = json.dumps({"messages": [{"role": "user", "content": words}], "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nX-Request-Id: {lease.request_id}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return (await reader.read()).partition(b"\r\n\r\n")[2]
    finally:
        writer.close()
