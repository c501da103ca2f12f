"""The whole daemon and its service manager: reloads, the watchdog, a long drain, a port that outlives a restart."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from support.running_daemon import Stream, chat, running_daemon, scripted_yaml, stop, streaming
from support.service_manager import Manager, service_manager
from support.stuck_daemon import EXTEND_S

WATCHDOG_S = 0.6
MODEL = "  a: {path: a.model, memory_mib: 100}\n"
BLOCKING = f"  b: {{path: b.model, backend: blocking, memory_mib: 100, block_s: {3 * WATCHDOG_S}}}\n"
STUCK = "support.stuck_daemon"


def watched(manager: Manager) -> dict[str, str]:
    return manager.env(WATCHDOG_USEC=str(round(WATCHDOG_S * 1e6)))


async def assert_fires(manager: Manager) -> None:
    """The daemon hangs from here on: see that systemd would kill it in time, as it does so long after the last ping."""
    hung_s, before = time.monotonic(), len(manager.pings())
    at_s = manager.pings()[-1] + WATCHDOG_S
    async with manager.news:
        while time.monotonic() < at_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(manager.news.wait(), at_s - time.monotonic())
            at_s = manager.pings()[-1] + WATCHDOG_S
    print(f"the watchdog fires {at_s - hung_s:.2f} s after the hang began, of {WATCHDOG_S:g} s that it allows")
    # One may have been on its way.
    assert len(manager.pings()) <= before + 1


async def pinged(manager: Manager, times: int) -> None:
    """So many pings have come, from now on."""
    after = len(manager.messages)
    for _ in range(times):
        after = await manager.said("WATCHDOG", after=after) + 1


async def test_a_reload_on_sighup_says_when_it_began_and_that_it_is_over(tmp_path: Path) -> None:
    async with service_manager(tmp_path) as manager:
        yaml = scripted_yaml(tmp_path, MODEL)
        async with running_daemon(tmp_path, yaml, env=manager.env()) as daemon:
            ready = await manager.said("READY", "1")
            sent_s = time.monotonic()
            stop(daemon, signal.SIGHUP)
            began = await manager.said("RELOADING", "1", after=ready + 1)
            over = await manager.said("READY", "1", after=began)
            assert over > began
            # systemd takes a reload as its own if it began after the signal was sent.
            assert sent_s <= int(manager.messages[began].fields["MONOTONIC_USEC"]) / 1e6 <= manager.messages[over].at_s
            # A list that is refused ends the reload as well: nobody waits for it for ever.
            daemon.config.write_text("models: 7\n")
            stop(daemon, signal.SIGHUP)
            began = await manager.said("RELOADING", "1", after=over + 1)
            await manager.said("READY", "1", after=began + 1)
            assert {one.pid for one in manager.messages} == {daemon.process.pid}


async def test_the_watchdog_fires_on_a_loop_that_is_blocked(tmp_path: Path) -> None:
    async with service_manager(tmp_path) as manager:
        yaml = scripted_yaml(tmp_path, MODEL + BLOCKING)
        async with running_daemon(tmp_path, yaml, program=STUCK, env=watched(manager)) as daemon:
            await pinged(manager, 2)
            asked = asyncio.create_task(chat(daemon.url, "b", "tokens=1"))
            await daemon.logged(event="the loop is blocked")
            await assert_fires(manager)
            # That it was the block which kept them away is seen when it is over.
            assert (await asked).done
            await pinged(manager, 2)


async def test_the_watchdog_fires_on_a_scheduler_that_takes_nothing_though_the_loop_turns(tmp_path: Path) -> None:
    async with service_manager(tmp_path) as manager:
        yaml = scripted_yaml(tmp_path, MODEL)
        async with running_daemon(tmp_path, yaml, program=STUCK, env=watched(manager)) as daemon:
            await pinged(manager, 2)
            stop(daemon, signal.SIGUSR1)
            await daemon.logged(event="the scheduler is stuck")
            await assert_fires(manager)
            # The loop turns on: it answers.
            assert (await daemon.status())["version"]


async def test_a_long_drain_asks_for_more_time_again_and_again(tmp_path: Path) -> None:
    async with service_manager(tmp_path) as manager:
        yaml = scripted_yaml(tmp_path, MODEL)
        async with running_daemon(tmp_path, yaml, program=STUCK, env=manager.env()) as daemon:
            stream = Stream()
            told = asyncio.create_task(chat(daemon.url, "a", "tokens=10 gap_s=0.12", stream))
            await stream.first.wait()
            stop(daemon)
            stopping = await manager.said("STOPPING", "1")
            assert (await told).done
            assert await daemon.process.wait() == 0
            more = [one for one in manager.messages[stopping:] if "EXTEND_TIMEOUT_USEC" in one.fields]
            assert len(more) >= 3
            for one, following in pairwise(more):
                # Each comes before the time is over that the one before has asked for.
                asked_s = int(one.fields["EXTEND_TIMEOUT_USEC"]) / 1e6
                assert asked_s == pytest.approx(2 * EXTEND_S)
                assert following.at_s - one.at_s < asked_s


@dataclass
class Knocks:
    """What a client saw that came with a new connection each time."""

    seen: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0

    async def knock(self, address: tuple[str, int]) -> None:
        began_s = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection(*address)
        except ConnectionRefusedError:
            self.seen["refused"] += 1
            return
        try:
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            self.seen[answer[9:12].decode() or "no answer"] += 1
        except ConnectionError:
            self.seen["no answer"] += 1
        finally:
            writer.close()
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    async def go_on(self, address: tuple[str, int]) -> None:
        while True:
            await self.knock(address)
            await asyncio.sleep(0.002)


async def test_a_restart_behind_a_socket_unit_refuses_no_connection(tmp_path: Path) -> None:
    knocks = Knocks()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        address = listener.getsockname()
        yaml = scripted_yaml(tmp_path, MODEL)
        async with running_daemon(tmp_path, yaml, listener=listener) as before:
            knocking = asyncio.create_task(knocks.go_on(address))
            assert (await chat(before.url, "a", "tokens=1")).done
            _, told = await streaming(before, "a", "tokens=10 gap_s=0.03")
            stop(before)
            assert (await told).done
            assert await before.process.wait() == 0
        # Nobody accepts now: who comes waits for the next daemon.
        async with running_daemon(tmp_path, yaml, listener=listener) as after:
            assert (await chat(after.url, "a", "tokens=1")).done
            knocking.cancel()
            await asyncio.gather(knocking, return_exceptions=True)
    print(f"{knocks.seen}; the longest waited {knocks.longest_s:.2f} s")
    assert knocks.seen["refused"] == 0
    assert knocks.seen["no answer"] == 0
    assert knocks.seen["200"] > 10
