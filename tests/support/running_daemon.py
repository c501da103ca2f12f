"""The whole daemon as a process of its own, started from a YAML file, and what is needed to watch it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

TESTS = Path(__file__).parent.parent
ACTIVATED = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
"""systemd's socket activation in a shell's words: the process id is that of the program it becomes."""


@dataclass
class RunningDaemon:
    """A daemon process, its address, and the log lines it has written."""

    process: asyncio.subprocess.Process
    config: Path
    url: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def logged(self, **fields: object) -> dict[str, Any]:
        """The first log line with these fields, now or later."""

        def found() -> dict[str, Any] | None:
            for line in self.lines:
                if all(line.get(name) == value for name, value in fields.items()):
                    return line
            return None

        async with asyncio.timeout(30), self.news:
            await self.news.wait_for(lambda: found() is not None)
        line = found()
        assert line is not None
        return line

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        while raw := await self.process.stderr.readline():
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": raw.decode("utf-8", "replace").rstrip()}
            async with self.news:
                self.lines.append(line)
                self.news.notify_all()

    async def status(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/swapd/v1/status") as answer:
            document: dict[str, Any] = await answer.json()
            return document

    async def model(self, model_id: str) -> dict[str, Any]:
        return next(model for model in (await self.status())["models"] if model["id"] == model_id)

    async def pid(self, model_id: str) -> int:
        (worker,) = (await self.model(model_id))["workers"]
        assert worker["pid"] is not None
        return int(worker["pid"])

    async def say_tasks(self) -> dict[str, Any]:
        """The line of a scripted daemon about its tasks, as they are now."""
        seen = sum(line.get("event") == "tasks" for line in self.lines)
        self.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(30), self.news:
            await self.news.wait_for(lambda: sum(line.get("event") == "tasks" for line in self.lines) > seen)
        return [line for line in self.lines if line.get("event") == "tasks"][-1]

    def descendants(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]


@asynccontextmanager
async def running_daemon(
    tmp_path: Path,
    yaml: str,
    *,
    program: str = "support.scripted_daemon",
    env: dict[str, str] | None = None,
    listener: socket.socket | None = None,
) -> AsyncIterator[RunningDaemon]:
    """Start a daemon on the configuration and wait until it serves; leaving kills it if it still runs."""
    config = tmp_path / "swapd.yaml"
    config.write_text(yaml)
    daemon = RunningDaemon(await start(tmp_path, config, program=program, env=env, listener=listener), config)
    reader = asyncio.create_task(daemon.read_log())
    try:
        line = await daemon.logged(event="serving")
        daemon.url = f"http://{line['addresses'][0]}"
        yield daemon
    finally:
        if daemon.process.returncode is None:
            daemon.process.kill()
        await daemon.process.wait()
        await reader


async def start(
    tmp_path: Path,
    config: Path,
    *,
    program: str = "support.scripted_daemon",
    env: dict[str, str] | None = None,
    listener: socket.socket | None = None,
) -> asyncio.subprocess.Process:
    """With a listener it is started as by a socket unit: it finds the socket open, as its descriptor 3."""
    argv = [sys.executable, "-m", program, str(config)]
    passed = [] if listener is None else [listener.fileno()]
    return await asyncio.create_subprocess_exec(
        *(["/bin/bash", "-c", ACTIVATED, "bash", str(passed[0])] if passed else []),
        *argv,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS), **(env or {})},
        stderr=asyncio.subprocess.PIPE,
        pass_fds=passed,
    )


def scripted_yaml(tmp_path: Path, models: str, *, server: str = "", top: str = "") -> str:
    """A configuration with its directories below `tmp_path`, and a file for each scripted model."""
    for name in "abcd":
        (tmp_path / f"{name}.model").touch()
        (tmp_path / f"{name}.model").write_text("model")
    return (
        "server:\n"
        "  listen: 127.0.0.1:0\n"
        f"  state_dir: {tmp_path / 'state'}\n"
        f"  runtime_dir: {tmp_path / 'run'}\n"
        f"{server}"
        "memory:\n  budget: {RAM: 250MiB}\n"
        "turns: {turn: 100ms, max_wait: 5s}\n"
        f"{top}"
        "defaults: {backend: scripted}\n"
        f"models:\n{models}"
    )


@dataclass
class Stream:
    """What a client received of one streamed chat."""

    status: int = 0
    events: list[str] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    body: str = ""

    @property
    def done(self) -> bool:
        return self.events[-1:] == ["[DONE]"]

    @property
    def error(self) -> dict[str, Any] | None:
        for event in self.events:
            if event != "[DONE]" and "error" in json.loads(event):
                error: dict[str, Any] = json.loads(event)["error"]
                return error
        return None


async def chat(url: str, model: str, words: str, into: Stream | None = None, **fields: object) -> Stream:
    """One streamed chat request, read to its end."""
    stream = Stream() if into is None else into
    body = {"model": model, "messages": [{"role": "user", "content": words}], "stream": True, **fields}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            stream.status = answer.status
            if answer.status != 200:
                stream.body = await answer.text()
                return stream
            buffer = b""
            async for chunk in answer.content.iter_any():
                buffer += chunk
                *events, buffer = buffer.split(b"\n\n")
                for event in events:
                    if event.startswith(b"data: "):
                        stream.events.append(event[6:].decode())
                        stream.first.set()
    return stream


async def streaming(daemon: RunningDaemon, model: str, words: str) -> tuple[Stream, asyncio.Task[Stream]]:
    """A stream that has begun."""
    stream = Stream()
    task = asyncio.create_task(chat(daemon.url, model, words, stream))
    await asyncio.wait_for(stream.first.wait(), 20)
    return stream, task


def stop(daemon: RunningDaemon, number: signal.Signals = signal.SIGTERM) -> None:
    daemon.process.send_signal(number)
