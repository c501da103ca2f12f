"""Virtual models and profiles through the real front door, relay, pool and core, with scripted workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest
from support.front_door import book_in_memory
from support.running_pool import config, running_pool, scripted, ticket

from swapd.config.schema import Profile, Virtual
from swapd.http.listen import serve
from swapd.http.server import make_app
from swapd.observe.metrics import Metrics
from swapd.pool.pool import Pool

CHAT = "/v1/chat/completions"


@dataclass
class Front:
    pool: Pool
    http: aiohttp.ClientSession

    async def ask(self, model: str = "v", words: str = "", *, stream: bool = False) -> tuple[int, str, str]:
        """Status, who served, and the body."""
        body = {"model": model, "messages": [{"role": "user", "content": words}], "stream": stream}
        async with self.http.post(CHAT, json=body) as response:
            text = await response.text()
            return response.status, response.headers.get("X-Swapd-Model", ""), text

    def settled(self) -> bool:
        """Every request that was ever accepted has ended, and no place is taken."""
        status = self.pool.status()
        counts = status.requests
        ended = counts.finished + counts.failed + counts.cancelled
        return counts.accepted == ended and not any(one.running or one.waiting for one in status.models)

    async def settle(self) -> None:
        async with asyncio.timeout(5):
            while not self.settled():
                await self.pool.heartbeat()


@asynccontextmanager
async def front(directory: Path, virtual: Virtual, **models: dict[str, object]) -> AsyncIterator[Front]:
    """Models by name with their settings; `v` is the virtual one."""
    configuration = msgspec.structs.replace(
        config(*(scripted(directory, name, **settings) for name, settings in models.items()), budget_mib=1000),
        virtual={"v": virtual},
        profiles={"gaming": Profile(disable=("a",)), "none": Profile(disable=tuple(models))},
    )
    async with running_pool(directory, configuration) as (pool, _):
        with book_in_memory() as book:
            app = make_app(pool, pool.config, Metrics(), book)
            async with (
                serve(app, ["127.0.0.1:0"], shutdown_timeout_s=1.0) as addresses,
                aiohttp.ClientSession(f"http://{addresses[0]}", timeout=aiohttp.ClientTimeout(total=20)) as http,
            ):
                home = Front(pool, http)
                yield home
                await home.settle()


def fallback(max_wait_s: float | None = None) -> Virtual:
    return Virtual(id="v", strategy="fallback", targets=("a", "b"), max_wait_s=max_wait_s)


@pytest.mark.parametrize("settings", [{"failure": "exit"}, {"memory_mib": 2000}, {"failure": "invalid"}])
async def test_a_target_that_cannot_load_or_fit_is_passed_over_again_and_again(
    settings: dict[str, object], tmp_path: Path
) -> None:
    async with front(tmp_path, fallback(), a=settings, b={}) as home:
        for _ in range(2):
            status, served_by, _ = await home.ask()
            assert (status, served_by) == (200, "b")


async def test_a_worker_that_dies_before_its_answer_has_the_next_target_serve(tmp_path: Path) -> None:
    async with front(tmp_path, fallback(), a={}, b={}) as home:
        status, served_by, _ = await home.ask(words="die_after=0")
        # Each worker obeys, the last is replayed once, and the client is told.
        assert (status, served_by) == (502, "b")
        assert (await home.ask())[:2] == (200, "a")


async def test_a_full_target_is_left_after_max_wait_without_a_place_or_a_charge_left_behind(tmp_path: Path) -> None:
    async with front(tmp_path, fallback(0.1), a={"n_parallel": 1}, b={}) as home:
        await home.pool.load("a")
        async with home.pool.lease(ticket("a", "holder")):
            found = await asyncio.gather(*(home.ask(words="tokens=1") for _ in range(4)))
            assert {one[:2] for one in found} == {(200, "b")}
            counts = home.pool.status().requests
            assert (counts.cancelled, counts.finished, counts.running, counts.waiting) == (4, 4, 1, 0)
        assert (await home.ask())[1] == "a"


async def test_a_load_goes_on_when_the_request_turns_to_the_next(tmp_path: Path) -> None:
    async with front(tmp_path, fallback(0.1), a={"load_s": 0.6}, b={}) as home:
        assert (await home.ask())[1] == "b"
        await home.pool.load("a")
        assert (await home.ask())[1] == "a"
        loads = {one.id: one.loads for one in home.pool.status().models}
        assert loads == {"a": 1, "b": 1}


async def test_spillover_fills_the_first_and_then_the_next(tmp_path: Path) -> None:
    virtual = Virtual(id="v", strategy="spillover", targets=("a", "b"))
    async with front(tmp_path, virtual, a={"n_parallel": 1}, b={"n_parallel": 1}) as home:
        await home.pool.load("a")
        await home.pool.load("b")
        assert (await home.ask())[1] == "a"
        async with home.pool.lease(ticket("a", "holder")):
            assert (await home.ask())[1] == "b"
        assert (await home.ask())[1] == "a"


@pytest.mark.parametrize("stream", [False, True])
async def test_clients_that_leave_at_any_moment_leave_nothing_behind(stream: bool, tmp_path: Path) -> None:
    async with front(tmp_path, fallback(0.03), a={"n_parallel": 1, "load_s": 0.05}, b={"load_s": 0.05}) as home:
        asking = [asyncio.create_task(home.ask(words="tokens=3 gap_s=0.02", stream=stream)) for _ in range(24)]
        for moment, task in enumerate(asking):
            await asyncio.wait({task}, timeout=0.005 * (moment % 6))
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await home.settle()
        assert (await home.ask(words="tokens=1"))[0] == 200


async def test_a_profile_takes_a_target_away_while_its_answer_goes_on(tmp_path: Path) -> None:
    async with front(tmp_path, fallback(), a={}, b={}) as home:
        body = {"model": "v", "messages": [{"role": "user", "content": "tokens=6 gap_s=0.05"}], "stream": True}
        async with home.http.post(CHAT, json=body) as response:
            await response.content.readany()
            async with home.http.put("/swapd/v1/profiles/active", json={"profile": "gaming"}) as switched:
                assert (await switched.json())["active"] == "gaming"
            assert (await home.ask())[1] == "b"
            assert b"[DONE]" in await response.read()
        status, _, text = await home.ask("a")
        assert (status, json.loads(text)["error"]["code"]) == (404, "model_disabled")
        async with home.http.get("/v1/models") as response:
            listed = {one["id"]: one for one in (await response.json())["data"]}
        assert listed["v"]["virtual"] == {"strategy": "fallback", "targets": ["a", "b"], "resolves_to": "b"}
        async with home.http.put("/swapd/v1/profiles/active", json={"profile": "none"}):
            status, _, text = await home.ask()
        assert (status, "every target" in text) == (404, True)
