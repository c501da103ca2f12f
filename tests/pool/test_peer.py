"""A server elsewhere in a worker's place: a real pool, real connections, scripted servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.front_door import Call, Script, tcp_worker
from support.running_pool import config, running_pool, ticket

from backends.address import UrlAddress
from backends.base import Peer
from backends.remote import RemoteSettings
from swapd.config.schema import Model
from swapd.core import events as ev
from swapd.errors import InvalidModelFileError, LoadFailedError
from swapd.pool.lease import TokenCounts
from swapd.pool.peer import MAX_FAILURES, PeerWorker
from swapd.pool.ring import Ring

KEY = "canary-sk-1234"


def remote(proxy: str, **fields: object) -> Model:
    settings = RemoteSettings(proxy=proxy, **fields)  # type: ignore[arg-type]
    return Model(id="cloud", backend="remote", settings=settings, stall_timeout_s=33.0)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def healthy(call: Call) -> None:
    await call.whole(b"{}")


async def test_it_is_leased_without_a_byte_of_memory(tmp_path: Path) -> None:
    heads: list[str] = []
    (tmp_path / "key").write_text(KEY)

    async def script(call: Call) -> None:
        heads.append(call.head)
        await healthy(call)

    async with tcp_worker(script) as at:
        model = remote(f"http://127.0.0.1:{at.port}/base", api_key_file=tmp_path / "key", n_parallel=2)
        async with running_pool(tmp_path, config(model)) as (pool, counts):
            async with pool.lease(ticket("cloud")) as lease:
                assert isinstance(lease.address, UrlAddress)
                assert (lease.address.port, lease.address.base_path) == (at.port, "/base")
                assert not lease.reports_usage
                assert lease.patience is not None
                assert (lease.patience.first_token_s, lease.patience.silence_s) == (600.0, 33.0)
                assert KEY not in repr(lease)
                status = pool.status()
            (shown,) = status.models
            assert (shown.state, shown.slots, shown.footprint.estimated_bytes) == ("ready", 2, {})
            assert (shown.workers[0].pid, shown.workers[0].reserved_bytes) == (None, {})
            assert status.devices[0].reserved_bytes == 0
            assert KEY not in repr(status)
            assert counts.loads == [("cloud", "ready")]
    assert heads[0].startswith("GET /base/v1/models HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}\r\n" in heads[0]


async def test_tokens_that_the_door_counts_reach_the_books(tmp_path: Path) -> None:
    async with tcp_worker(healthy) as at:
        async with running_pool(tmp_path, config(remote(f"http://127.0.0.1:{at.port}"))) as (pool, counts):
            async with pool.lease(ticket("cloud")) as lease:
                pool.answer_moved(lease, began=True)
                pool.answer_counted(lease, TokenCounts(7, 2, 3))
            await pool.heartbeat()
            assert counts.tokens == [("cloud", 7, 2, 3)]


@pytest.mark.parametrize("health", ["/health", "none"])
async def test_one_that_is_not_there_is_a_failed_load_that_says_why_and_backs_off(tmp_path: Path, health: str) -> None:
    port = closed_port()
    async with running_pool(tmp_path, config(remote(f"http://127.0.0.1:{port}", health=health))) as (pool, counts):
        for _ in range(2):
            with pytest.raises(LoadFailedError, match=rf"127\.0\.0\.1:{port}.*no connection") as refused:
                async with pool.lease(ticket("cloud")):
                    pytest.fail("there is nobody")
            assert refused.value.retry_after_s is not None
        assert counts.loads == [("cloud", "failed")]


@pytest.mark.parametrize(
    ("status", "why"),
    [("401 No", "refuses swapd's key"), ("503 Soon", "answered 503"), ("302 Elsewhere\r\nLocation: {there}", "302")],
)
async def test_one_that_is_not_healthy_is_a_failed_load_and_no_redirect_is_followed(
    tmp_path: Path, status: str, why: str
) -> None:
    asked: list[str] = []
    (tmp_path / "key").write_text(KEY)

    async def elsewhere(call: Call) -> None:
        asked.append(call.head)
        await healthy(call)

    async with tcp_worker(elsewhere) as there:

        async def script(call: Call) -> None:
            await call.whole(KEY.encode(), status=status.format(there=f"http://127.0.0.1:{there.port}/"))

        async with tcp_worker(script) as at:
            model = remote(f"http://127.0.0.1:{at.port}", api_key_file=tmp_path / "key")
            async with running_pool(tmp_path, config(model)) as (pool, _):
                with pytest.raises(LoadFailedError, match=why) as refused:
                    async with pool.lease(ticket("cloud")):
                        pytest.fail("it is not healthy")
                assert KEY not in refused.value.message
                assert not any(KEY in line for line in pool.logs("cloud"))
    assert asked == []


async def test_a_missing_key_is_a_verdict(tmp_path: Path) -> None:
    model = remote("http://127.0.0.1:1", api_key_file=tmp_path / "none")
    async with running_pool(tmp_path, config(model)) as (pool, _):
        with pytest.raises(InvalidModelFileError, match="api_key_file"):
            async with pool.lease(ticket("cloud")):
                pytest.fail("there is no key")


async def test_one_that_breaks_every_request_is_given_up_and_visited_again(tmp_path: Path) -> None:
    async with tcp_worker(healthy) as at:
        async with running_pool(tmp_path, config(remote(f"http://127.0.0.1:{at.port}"))) as (pool, counts):
            async with pool.lease(ticket("cloud")) as lease:
                for _ in range(MAX_FAILURES):
                    pool.answer_broke(lease)
                async with asyncio.timeout(10):
                    assert "broke 3 requests in a row" in await lease.lost
            async with pool.lease(ticket("cloud", "2")) as again:
                assert again.worker_id != lease.worker_id
            assert counts.departures == [("cloud", "crashed", False)]
            assert counts.loads == [("cloud", "ready")] * 2


# -- one worker by itself ----------------------------------------------------------------------------------------


class Watched:
    """A worker elsewhere and what it posts."""

    def __init__(self, port: int, check_every_s: float) -> None:
        self.events: list[ev.Event] = []
        self.changed = asyncio.Event()
        self.worker = PeerWorker(1, "cloud", Ring(10), (9.0, 9.0), self.post, check_every_s=check_every_s)
        self.peer = Peer(UrlAddress("127.0.0.1", port), "/health", 5.0)

    def post(self, event: ev.Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, kind: type[ev.Event]) -> ev.Event:
        async with asyncio.timeout(10):
            while not any(isinstance(event, kind) for event in self.events):
                self.changed.clear()
                await self.changed.wait()
        return next(event for event in self.events if isinstance(event, kind))


@asynccontextmanager
async def watched(script: Script, check_every_s: float = 3600.0) -> AsyncIterator[Watched]:
    """One that is ready; leaving stops it."""
    async with tcp_worker(script) as at:
        one = Watched(at.port, check_every_s)
        task = asyncio.create_task(one.worker.run(lambda: one.peer))
        await one.until(ev.WorkerReady)
        yield one
        one.worker.stop(5.0)
        await asyncio.wait_for(task, 5)
        assert [type(event) for event in one.events] == [ev.WorkerStarted, ev.WorkerReady, ev.WorkerExited]
        assert one.worker.lost.done()


async def test_its_life_is_that_of_a_process() -> None:
    async with watched(healthy) as one:
        assert not one.worker.lost.done()


async def test_it_can_be_stopped_while_its_health_is_looked_at() -> None:
    asked = asyncio.Event()

    async def script(call: Call) -> None:
        asked.set()
        await call.closed()

    async with tcp_worker(script) as at:
        one = Watched(at.port, 3600.0)
        task = asyncio.create_task(one.worker.run(lambda: one.peer))
        await asked.wait()
        one.worker.stop(5.0)
        await asyncio.wait_for(task, 5)
    assert [type(event) for event in one.events] == [ev.WorkerStarted, ev.WorkerExited]


async def test_a_request_that_breaks_has_it_looked_at_and_a_byte_of_an_answer_starts_the_count_anew() -> None:
    looks: asyncio.Queue[None] = asyncio.Queue()

    async def script(call: Call) -> None:
        looks.put_nowait(None)
        await healthy(call)

    async with watched(script) as one, asyncio.timeout(10):
        await looks.get()
        for _ in range(MAX_FAILURES):
            for _ in range(MAX_FAILURES - 1):
                one.worker.answer_broke()
                await looks.get()
            one.worker.answer_moved()
    assert isinstance(one.events[-1], ev.WorkerExited)
    assert "no longer used" in one.events[-1].detail


async def test_as_many_broken_requests_in_a_row_give_a_healthy_one_up() -> None:
    async with watched(healthy) as one:
        for _ in range(MAX_FAILURES):
            one.worker.answer_broke()
        exited = await one.until(ev.WorkerExited)
    assert isinstance(exited, ev.WorkerExited)
    assert "broke 3 requests in a row" in exited.detail


async def test_a_broken_request_and_an_unhealthy_look_give_it_up() -> None:
    answers = ["200 OK", "500 Ill"]

    async def script(call: Call) -> None:
        await call.whole(b"", status=answers.pop(0))

    async with watched(script) as one:
        one.worker.answer_broke()
        exited = await one.until(ev.WorkerExited)
    assert isinstance(exited, ev.WorkerExited)
    assert "answered 500 to GET /health" in exited.detail


async def test_one_that_is_used_is_looked_at_from_time_to_time_and_an_idle_one_is_not() -> None:
    looks: asyncio.Queue[None] = asyncio.Queue()

    async def script(call: Call) -> None:
        looks.put_nowait(None)
        await healthy(call)

    async with watched(script, check_every_s=0.01) as one, asyncio.timeout(10):
        await looks.get()
        one.worker.answer_moved()
        await looks.get()
        await asyncio.sleep(0.1)
        assert looks.empty()
