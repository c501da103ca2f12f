"""A foreign program under the guard: real processes, real sockets."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from support.running_pool import alive, gone

from backends.address import TcpAddress, UnixAddress
from backends.control import Failed, Loading, Message, Ready, decode
from backends.guard.plan import PLAN_VARIABLE, GuardPlan, guard_launch
from swapd.pool.process import Started, start

SERVER = (sys.executable, "-S", str(Path(__file__).parents[1] / "support" / "foreign_server.py"))
ENV = {"PATH": "/usr/bin:/bin"}


class Guarded:
    """A guard, and what it says."""

    def __init__(self, started: Started, reader: asyncio.StreamReader) -> None:
        self.started = started
        self._reader = reader

    async def message(self, kind: type[Message]) -> Message:
        """The next message of this kind."""
        while line := await self._reader.readline():
            message = decode(line)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"the channel was closed without {kind.__name__}")

    async def line(self, pattern: str) -> re.Match[str]:
        """The next line of output that matches."""
        assert self.started.process.stdout is not None
        while line := await self.started.process.stdout.readline():
            if match := re.search(pattern, line.decode()):
                return match
        raise AssertionError(f"the output ended without {pattern!r}")

    async def rest(self) -> str:
        assert self.started.process.stdout is not None
        return (await self.started.process.stdout.read()).decode()

    async def exit(self) -> int:
        return await asyncio.wait_for(self.started.process.wait(), 10)


@asynccontextmanager
async def guarded(plan: GuardPlan) -> AsyncIterator[Guarded]:
    started = await start(partial(guard_launch, plan))
    reader, writer = await asyncio.open_unix_connection(sock=started.control.dup())
    try:
        yield Guarded(started, reader)
    finally:
        writer.close()
        await started.end()
        assert not alive(started.process.pid)


def plan(tmp_path: Path, *flags: str, **fields: object) -> GuardPlan:
    path = tmp_path / "w.sock"
    where = {} if "tcp" in fields else {"unix": UnixAddress(path)}
    words = {"argv": (*SERVER, "--uds", str(path), *flags), "env": ENV, "slots": 3, **where}
    return GuardPlan(**(words | fields))  # type: ignore[arg-type]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def children(one: Guarded) -> list[int]:
    return [int((await one.line(r"child (\d+)"))[1]) for _ in range(2)]


async def test_it_is_ready_when_its_health_says_so_and_its_output_is_passed_on(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, "--load-s", "0.3", "--chatter", n_ctx=77, progress=(r"loading (\d+)%",))) as one:
        loading = await one.message(Loading)
        assert isinstance(loading, Loading)
        assert loading.progress is not None
        assert 0 <= loading.progress < 1
        assert await one.message(Ready) == Ready(n_ctx=77, slots=3)
        await one.line("^loaded")


async def test_a_program_without_a_health_page_is_ready_when_it_takes_connections(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = TcpAddress("127.0.0.1", free.getsockname()[1])
    argv = (*SERVER, "--listen-late", "--hang-health", "--port", str(address.port))
    async with guarded(plan(tmp_path, argv=argv, tcp=address, check=None)) as one:
        await one.message(Ready)


@pytest.mark.parametrize(("flag", "status"), [("3", 3), ("-11", -11), ("-9", -9)])
async def test_it_ends_as_its_program_ends_after_the_last_words(tmp_path: Path, flag: str, status: int) -> None:
    async with guarded(plan(tmp_path, "--fail", flag)) as one:
        assert "no such tensor\n" in await one.rest()
        assert await one.exit() == status


async def test_a_program_that_cannot_be_started_is_a_failed_load_with_a_reason(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, argv=("/no/such/program",))) as one:
        failed = await one.message(Failed)
        assert isinstance(failed, Failed)
        assert "/no/such/program was not started: [Errno 2]" in failed.message
        assert await one.exit() == 1


async def test_a_port_that_somebody_else_has_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = TcpAddress("127.0.0.1", taken.getsockname()[1])
        async with guarded(plan(tmp_path, tcp=address)) as one:
            failed = await one.message(Failed)
            assert isinstance(failed, Failed)
            assert f"address in use: something else listens at 127.0.0.1:{address.port}" in failed.message


async def test_nothing_outlives_the_daemon_not_even_a_grandchild_in_a_session_of_its_own(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, "--children", "--ignore-sigterm")) as one:
        pids = await children(one)
        await one.message(Ready)
        one.started.control.shutdown(socket.SHUT_RDWR)  # what the kernel does for a daemon that was killed
        async with asyncio.timeout(1):
            for pid in pids:
                await gone(pid)
        assert await one.exit() == -signal.SIGKILL


DAEMON = """
import asyncio, sys
from functools import partial
import msgspec
from backends.guard.plan import GuardPlan, guard_launch, read_plan
from swapd.pool.process import start

async def run():
    started = await start(partial(guard_launch, read_plan({"SWAPD_GUARD_PLAN": sys.argv[1]})))
    while line := await started.process.stdout.readline():
        print(line.decode(), end="", flush=True)

asyncio.run(run())
"""


async def test_a_killed_daemon_has_no_heirs(tmp_path: Path) -> None:
    said = guard_launch(plan(tmp_path, "--children", "--ignore-sigterm"), 0).env[PLAN_VARIABLE]
    argv = (sys.executable, "-c", DAEMON, said)
    daemon = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert daemon.stdout is not None
    pids = [int((await daemon.stdout.readline()).split()[1]) for _ in range(2)]
    assert b"loaded" in await daemon.stdout.readline()
    daemon.kill()
    async with asyncio.timeout(1):
        for pid in pids:
            await gone(pid)
    await daemon.wait()


async def test_what_a_program_leaves_behind_when_it_crashes_is_killed(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, "--children", "--fail", "4")) as one:
        pids = await children(one)
        assert await one.exit() == 4
        assert not [pid for pid in pids if alive(pid)]


async def test_a_killed_guard_takes_its_program_with_it(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, argv=("/bin/sh", "-c", "echo child $$; sleep 600 & wait"))) as one:
        pid = int((await one.line(r"child (\d+)"))[1])
        one.started.process.kill()
        async with asyncio.timeout(1):
            await gone(pid)
        # Its own child is what the guard alone could have reached.
        os.killpg(pid, signal.SIGKILL)


async def test_it_is_asked_to_end_by_sigterm_to_its_group(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, "--children")) as one:
        await one.message(Ready)
        one.started.signal(signal.SIGTERM)
        assert await one.exit() == -signal.SIGTERM


async def test_what_does_not_end_when_it_is_asked_to_is_killed_in_time(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, "--children", "--ignore-sigterm", stop_s=0.2)) as one:
        pids = await children(one)
        await one.message(Ready)
        one.started.signal(signal.SIGTERM)
        assert await one.exit() == -signal.SIGKILL
        assert not [pid for pid in pids if alive(pid)]


async def test_a_command_of_its_own_asks_it_to_end_and_knows_its_process(tmp_path: Path) -> None:
    stop = ("/bin/sh", "-c", "echo stopping ${PID}; kill -INT ${PID}")
    async with guarded(plan(tmp_path, "--ignore-sigterm", stop_argv=stop)) as one:
        await one.message(Ready)
        one.started.signal(signal.SIGTERM)
        await one.line(r"stopping \d+")
        assert await one.exit() == -signal.SIGINT


@pytest.mark.parametrize("crashes", [False, True])
async def test_the_command_that_ends_it_is_run_however_it_ends(tmp_path: Path, crashes: bool) -> None:
    stopped = tmp_path / "stopped"
    stop = ("/bin/sh", "-c", f"sleep 0.1; echo stopped >> {stopped}")
    async with guarded(plan(tmp_path, *(["--fail", "2"] if crashes else []), stop_argv=stop)) as one:
        if not crashes:
            await one.message(Ready)
            one.started.control.shutdown(socket.SHUT_RDWR)
        await one.exit()
        assert stopped.read_text() == "stopped\n"


async def test_answers_to_its_own_questions_are_no_progress_of_a_load(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, "--log-requests", "--load-s", "0.8")) as one:
        heard = 0
        while not isinstance(await one.message(Loading | Ready), Ready):  # type: ignore[arg-type]
            heard += 1
        assert heard <= 1  # the line that says that it has loaded


async def test_its_secrets_are_in_no_command_line(tmp_path: Path) -> None:
    async with guarded(plan(tmp_path, env=ENV | {"API_KEY": "canary"})) as one:
        await one.message(Ready)
        assert "canary" not in command_line(one.started.process.pid)
