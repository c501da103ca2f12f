"""The command `swapd demo`: a daemon of its own, three questions to two models, and what that did to memory.

Owns the child process and its directory, and leaves neither behind (killed by SIGKILL, the directory only).
The daemon listens on a Unix socket, so the tour needs no free port, and says over the service manager's protocol
when it is ready, so nothing polls.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from swapd import demo as demo_list
from swapd.cli.output import CommandError, duration, print_line, size
from swapd.client import Client, DaemonError, daemon_address
from swapd.observe.logs import escape_controls
from swapd.pool.status import Status

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
MAX_TOKENS = 48
MAX_SHOWN_LOG_BYTES = 4096

QUESTIONS = (
    ("smollm2-a", "In one sentence: what is a library?"),
    ("smollm2-b", "Name three fruits."),
    ("smollm2-a", "In one sentence: what is a river?"),
)
EXPECTED_LOADS = 3


def demo(_arguments: argparse.Namespace) -> int:
    """Run the tour. Raises `CommandError` or `StartupError` with one line when it cannot be finished."""
    with tempfile.TemporaryDirectory(prefix="swapd-") as directory:
        config = demo_list.demo_config(Path(directory))
        budget_bytes = config.memory.budget["RAM"].size_bytes
        assert budget_bytes is not None
        print_line(f"Two models, {' and '.join(config.models)}, and {size(budget_bytes)} of memory: room for one.")
        try:
            asyncio.run(_tour(Path(directory)))
        except DaemonError as error:
            raise CommandError(f"the demo failed: {error}") from error
        except TimeoutError as error:
            raise CommandError(f"the demo failed: no whole answer within {ANSWER_TIMEOUT_S:.0f} s") from error
    print_line("To go on by yourself: swapd serve --demo")
    return 0


async def _tour(directory: Path) -> None:
    address = f"unix:{directory / 'http'}"
    async with _stopped_by_sigterm(), _daemon(directory, address), Client(daemon_address(address)) as client:
        before = await client.status()
        for model, question in QUESTIONS:
            print_line("")
            print_line(f"{model} is asked: {question}")
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await _print_answer(client, model, question)
            after = await client.status()
            for change in changes(before, after):
                print_line(f"  {change}")
            before = after
        loads = sum(model.loads for model in before.models)
        print_line("")
        if loads != EXPECTED_LOADS:
            raise DaemonError(f"there were {loads} loads instead of {EXPECTED_LOADS}")
        print_line(f"{loads} loads, {loads - 1} evictions, never more memory than the budget.")


async def _print_answer(client: Client, model: str, question: str) -> None:
    sys.stdout.write(f"{model} answers: ")
    async with aclosing(client.chat(model, question, MAX_TOKENS)) as pieces:
        async for piece in pieces:
            sys.stdout.write(escape_controls(piece.replace("\n", " ")))
            sys.stdout.flush()
    sys.stdout.write("\n")


def changes(before: Status, after: Status) -> list[str]:
    """What happened to memory between two snapshots, as sentences: first who left and why, then who came."""
    was = {model.id: model for model in before.models}
    left, came = [], []
    for model in after.models:
        earlier = was[model.id]
        if earlier.state != "unloaded" and model.state == "unloaded":
            why = model.last_eviction.why if model.last_eviction is not None else "no reason was recorded"
            left.append(f"evicted {model.id}: {why}")
        if model.loads > earlier.loads:
            placed = f", {model.workers[0].placement}" if model.workers else ""
            came.append(f"loaded {model.id} in {duration(model.load_s)}{placed}")
    return left + came


@asynccontextmanager
async def _daemon(directory: Path, address: str) -> AsyncIterator[None]:
    """A `swapd serve --demo` that is ready; terminated, and if need be killed, with the scope."""
    log_path = directory / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver, log_path.open("wb") as log:
        receiver.setblocking(False)
        receiver.bind(str(directory / "notify"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(directory / "notify"), "TMPDIR": str(directory)}
        command = (sys.executable, "-m", "swapd", "serve", "--demo", "--stop-at-eof", "--listen", address)
        # The pipe at its standard input is a lifeline: however this process ends, the daemon sees the pipe's end.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, env=environment
        )
        try:
            await _until_ready(receiver, process, log_path)
            yield
        finally:
            await _stop(process)


async def _until_ready(receiver: socket.socket, process: asyncio.subprocess.Process, log_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        ready = group.create_task(_receive_ready(receiver))
        exited = group.create_task(process.wait())
        done, pending = await asyncio.wait(
            {ready, exited}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
    if ready in done:
        return
    what = f"ended with exit code {process.returncode}" if exited in done else "is not ready"
    raise DaemonError(f"the daemon {what}: {_last_words(log_path)}")


async def _receive_ready(receiver: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while b"READY=1" not in (await loop.sock_recv(receiver, 4096)).split(b"\n"):
        pass


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_words(log_path: Path) -> str:
    """The end of the daemon's log on one line."""
    with log_path.open("rb") as log:
        log.seek(max(0, log_path.stat().st_size - MAX_SHOWN_LOG_BYTES))
        text = log.read(MAX_SHOWN_LOG_BYTES).decode("utf-8", "replace")
    return re.sub(r"\s+", " ", text).strip() or "it wrote nothing"


@asynccontextmanager
async def _stopped_by_sigterm() -> AsyncIterator[None]:
    """SIGTERM ends the tour as Ctrl-C does, with the daemon stopped and the directory gone."""
    loop, tour = asyncio.get_running_loop(), asyncio.current_task()
    assert tour is not None
    loop.add_signal_handler(signal.SIGTERM, tour.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
