"""The commands that ask a running daemon: ps, load, unload, pause, resume, cancel, logs."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from backends.registry import installed_backends
from swapd.cli.keys import client_key
from swapd.cli.output import (
    MIB,
    Column,
    CommandError,
    complain,
    console,
    duration,
    print_json,
    print_line,
    print_table,
    size,
    sizes,
)
from swapd.cli.places import config_path
from swapd.cli.progress import showing
from swapd.client import Address, Client, DaemonError, daemon_address
from swapd.config.load import load as load_config
from swapd.config.problems import ConfigError
from swapd.config.schema import Server
from swapd.pool.status import DeviceStatus, FootprintStatus, ModelStatus, RequestStatus, Status

Answer = TypeVar("Answer")


def ps(arguments: argparse.Namespace) -> int:
    """What the daemon knows of every model."""
    status = ask(arguments, Client.status)
    if arguments.json:
        print_json(status)
        return 0
    print_status(console(), status)
    return 0


def load(arguments: argparse.Namespace) -> int:
    """Load one model now."""
    model = ask(arguments, lambda client: _load(client, arguments.model))
    print_line(f"{model.id} is {model.state}, loaded in {duration(model.load_s)}")
    return 0


async def _load(client: Client, model: str) -> ModelStatus:
    async with showing(client, model):
        return await client.load(model)


def models(arguments: argparse.Namespace) -> int:
    """Print the names of the daemon's models, or if none answers those of the configuration."""
    try:
        names = [model.id for model in ask(arguments, Client.status).models]
    except CommandError:
        path = config_path(arguments.config, os.environ, Path.home(), Path.exists)
        names = [] if path is None else list(load_config(path, installed_backends()).models)
    for name in names:
        print_line(name)
    return 0


def unload(arguments: argparse.Namespace) -> int:
    """Unload one model now, or all."""
    if arguments.all:
        models = ask(arguments, Client.unload_all)
    else:
        models = [ask(arguments, lambda client: client.unload(arguments.model))]
    for model in models:
        print_line(f"{model.id} is {model.state}")
    if not models:
        print_line("nothing is loaded")
    return 0


def pin(arguments: argparse.Namespace) -> int:
    """Keep one model loaded."""
    model = ask(arguments, lambda client: client.pin(arguments.model, pinned=True))
    print_line(f"{model.id} is pinned until the daemon ends, or `swapd unpin {model.id}`")
    return 0


def unpin(arguments: argparse.Namespace) -> int:
    """Keep one model loaded no longer, even if the configuration says so."""
    model = ask(arguments, lambda client: client.pin(arguments.model, pinned=False))
    print_line(f"{model.id} is not pinned")
    return 0


def pause(arguments: argparse.Namespace) -> int:
    """Hand one device over."""
    device = ask(arguments, lambda client: client.pause(arguments.device))
    if device.paused:
        print_line(f"{device.name} is yours: nothing of swapd's is on it. `swapd resume {device.name}` gives it back")
        return 0
    raise CommandError(f"{device.name} was taken back by `swapd resume` before it was empty")


def resume(arguments: argparse.Namespace) -> int:
    """Take one device back."""
    device = ask(arguments, lambda client: client.resume(arguments.device))
    print_line(f"{device.name} is swapd's again")
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """End one request."""
    ask(arguments, lambda client: client.cancel(arguments.request))
    print_line(f"{arguments.request} is cancelled")
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Print lines of one model's worker as they are, or of every model's with its name in front."""
    try:
        return ask(arguments, lambda client: _logs(client, arguments.model, arguments.follow))
    except KeyboardInterrupt:
        if arguments.follow:
            return 0
        raise


async def _logs(client: Client, model: str | None, follow: bool) -> int:
    if model is not None:
        await _print_logs(client, model, "", follow)
        return 0
    names = [one.id for one in (await client.status()).models]
    width = max((len(name) for name in names), default=0)
    if not follow:
        for name in names:
            await _print_logs(client, name, f"{name:{width}} | ", follow)
        return 0
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_follow_quietly(client, name, f"{name:{width}} | ")) for name in names]
    return max((task.result() for task in tasks), default=0)


async def _follow_quietly(client: Client, model: str, prefix: str) -> int:
    """One model's lines until they end. A model that goes away must not end the others' lines."""
    try:
        await _print_logs(client, model, prefix, follow=True)
    except DaemonError as error:
        complain(f"{model}: {error}")
        return 1
    return 0


async def _print_logs(client: Client, model: str, prefix: str, follow: bool) -> None:
    if not follow:
        for line in await client.logs(model):
            print_line(prefix + line)
        return
    async with aclosing(client.follow_logs(model)) as lines:
        async for line in lines:
            print_line(prefix + line)


def print_status(to: Console, status: Status) -> None:
    """Models, memories, and beneath them whatever needs a sentence."""
    columns = [
        Column("MODEL"),
        Column("STATE"),
        Column("RUNNING", "right", min_width=50),
        Column("WAITING", "right", min_width=50),
        Column("MEMORY", min_width=60),
        Column("LOADS", "right", min_width=80),
        Column("LOAD TIME", "right", min_width=100),
        Column("LAST USED", "right", min_width=70),
    ]
    print_table(to, columns, [_model_row(model) for model in status.models])
    waiting = [request for request in status.in_flight if request.state == "waiting"]
    if waiting:
        print_table(to, _WAITING_COLUMNS, [_waiting_row(request) for request in waiting])
    for device in status.devices:
        print_line(_device_line(device))
    for model in status.models:
        if model.workers and model.footprint.formula_bytes:
            print_line(f"memory of {model.id}: {memory(model.footprint)}")
    for remark in remarks(status):
        print_line(remark)


_WAITING_COLUMNS = [
    Column("WAITING REQUEST"),
    Column("FOR"),
    Column("CLIENT", min_width=70),
    Column("POSITION", "right"),
    Column("WAITED", "right", min_width=50),
    Column("EXPECTED", "right", min_width=60),
]


def _waiting_row(request: RequestStatus) -> list[str]:
    return [
        request.id,
        request.model,
        request.client,
        str(request.position),
        duration(request.waited_s),
        duration(request.expected_wait_s),
    ]


def _device_line(device: DeviceStatus) -> str:
    parts = [
        f"{size(device.reserved_bytes)} of {size(device.budget_bytes)} reserved",
        f"{size(device.free_bytes)} free",
    ]
    if device.others_bytes:
        parts.append(f"{size(device.others_bytes)} held by other programs")
    if device.shares is not None:
        parts.append(f"part of {device.shares}")
    if device.paused:
        parts.append(f"handed over until `swapd resume {device.name}`")
    if device.lost:
        parts.append("not found any more")
    return f"{device.name}: {', '.join(parts)}"


def memory(footprint: FootprintStatus) -> str:
    """'RAM 308 MiB estimated (formula 300 MiB, correction +8 MiB, engine 305 MiB, measured 298 MiB); CUDA0 …'."""
    said = []
    for name, estimated in footprint.estimated_bytes.items():
        others = {
            "formula": footprint.formula_bytes,
            "engine": footprint.probed_bytes,
            "measured": footprint.measured_bytes,
        }
        parts = [f"{what} {size(sizes[name])}" for what, sizes in others.items() if name in sizes]
        if name in footprint.correction_bytes:
            parts.insert(1, f"correction {footprint.correction_bytes[name] / MIB:+,.0f} MiB")
        said.append(f"{name} {size(estimated)} estimated" + (f" ({', '.join(parts)})" if parts else ""))
    return "; ".join(said)


def _model_row(model: ModelStatus) -> list[str]:
    reserved: dict[str, int] = {}
    for worker in model.workers:
        for name, size_bytes in worker.reserved_bytes.items():
            reserved[name] = reserved.get(name, 0) + size_bytes
    last_used = "never" if model.last_used_s is None else f"{duration(model.last_used_s)} ago"
    return [
        model.id,
        model.state if len(model.workers) < 2 else f"{model.state} ({len(model.workers)} workers)",
        str(model.running),
        str(model.waiting),
        sizes(reserved) or "-",
        str(model.loads),
        duration(model.load_s),
        last_used,
    ]


def remarks(status: Status) -> list[str]:
    """Sentences about what is not as it should be, and about who had to leave."""
    found = []
    for model in status.models:
        if model.error is not None:
            retry = f" (next try in {duration(model.retry_in_s)})" if model.retry_in_s is not None else ""
            found.append(f"{model.id}: {model.error}{retry}")
        if model.waits is not None:
            found.append(f"{model.id}: {model.waits}")
        if any(worker.portable for worker in model.workers):
            found.append(f"{model.id}: runs without special CPU instructions, after a crash with them")
        if model.last_eviction is not None:
            ago = duration(model.last_eviction.ago_s)
            found.append(f"{model.id}: evicted {ago} ago: {model.last_eviction.why}")
    if status.config.profile is not None:
        found.append(f"the profile {status.config.profile} is in force; `swapd profile --off` ends it")
    if status.config.error is not None:
        found.append(f"the configuration in force is an older one: {status.config.error}")
    return found


def ask(arguments: argparse.Namespace, question: Callable[[Client], Awaitable[Answer]]) -> Answer:
    """Run one exchange with the daemon. Raises `CommandError` with its one line."""
    address = _address(arguments.url, arguments.config)
    key = client_key(arguments.key_file, os.environ)

    async def run() -> Answer:
        async with Client(address, key) as client:
            return await question(client)

    try:
        return asyncio.run(run())
    except DaemonError as error:
        raise CommandError(str(error)) from error


def _address(url: str | None, config: Path | None) -> Address:
    """From `--url` or `SWAPD_URL`, else from the configuration, else where a daemon listens by default."""
    if url is not None:
        return daemon_address(url)
    path = config_path(config, os.environ, Path.home(), Path.exists)
    return daemon_address(_first_listen(path))


def _first_listen(path: Path | None) -> str:
    """A running daemon keeps its last good configuration, so a broken file is a remark here and no failure."""
    listen: Sequence[str] = Server().listen
    if path is not None:
        try:
            listen = load_config(path, installed_backends()).server.listen
        except ConfigError as error:
            problem = error.problems[0]
            complain(f"{path}:{problem.line}: {problem.key}: {problem.message}; looking for the daemon at {listen[0]}")
    return listen[0]
