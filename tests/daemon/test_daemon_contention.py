"""Many clients at one model of a real daemon, over real sockets: fair shares, and a request that is cancelled."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from support.checked_streams import clients
from support.contention import SLOTS, Answers, ask, contended
from support.running_daemon import running_daemon, scripted_yaml


async def test_one_request_at_a_time_waits_for_its_share_and_a_batch_beside_fifty_at_once(tmp_path: Path) -> None:
    hog, modest = Answers(), Answers()
    async with running_daemon(tmp_path, contended(tmp_path, "{max_waiting: 100}")) as daemon, clients() as session:
        enough = asyncio.Event()

        async def again() -> None:
            while not enough.is_set():
                await ask(session, daemon.url, "hog", hog)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(again())
            while (await daemon.model("a"))["waiting"] < 50 - SLOTS:
                pass
            for _ in range(10):
                await ask(session, daemon.url, "modest", modest)
            enough.set()
    assert hog.broken == modest.broken == []
    assert set(hog.statuses) == set(modest.statuses) == {200}
    batch_s = max(modest.served_s + hog.served_s)
    hogs_wait_s = sum(hog.waited_s[50:]) / len(hog.waited_s[50:])
    print(
        f"\nmodest: worst wait {max(modest.waited_s):.3f} s; hog: mean wait {hogs_wait_s:.3f} s; batch {batch_s:.3f} s"
    )
    # With equal requests its share is every second place, of which it takes one at a time: the next that is free.
    assert max(modest.waited_s) <= batch_s
    assert hogs_wait_s >= 3 * max(modest.waited_s)


async def test_a_request_that_somebody_cancels_ends_and_its_place_goes_to_the_next(tmp_path: Path) -> None:
    yaml = scripted_yaml(tmp_path, "  a: {path: a.model, memory_mib: 100, n_parallel: 1}\n")
    async with running_daemon(tmp_path, yaml) as daemon, clients() as session:

        async def post(request_id: str, words: str) -> tuple[int, bytes]:
            body = {"model": "a", "messages": [{"role": "user", "content": words}], "stream": request_id == "running"}
            headers = {"X-Request-Id": request_id}
            async with session.post(f"{daemon.url}/v1/chat/completions", json=body, headers=headers) as answer:
                return answer.status, await answer.read()

        async def listed(state: str, request_id: str) -> None:
            while (request_id, state) not in [(r["id"], r["state"]) for r in (await daemon.status())["in_flight"]]:
                pass

        async def cancel(request_id: str) -> int:
            async with session.post(f"{daemon.url}/swapd/v1/requests/{request_id}/cancel") as answer:
                return answer.status

        running = asyncio.create_task(post("running", "tokens=1000 gap_s=0.05"))
        await listed("running", "running")
        waiting = asyncio.create_task(post("waiting", "tokens=1"))
        await listed("waiting", "waiting")
        last = asyncio.create_task(post("last", "tokens=1"))
        await listed("waiting", "last")
        assert await cancel("waiting") == 200
        status, body = await waiting
        assert (status, json.loads(body)["error"]["code"]) == (499, "request_cancelled")
        assert await cancel("running") == 200
        status, body = await running
        assert status in (200, 499)
        assert b"request_cancelled" in body
        assert b"[DONE]" not in body
        assert (await last)[0] == 200
        assert await cancel("running") == 404
        counts = (await daemon.status())["requests"]
        assert (counts["cancelled"], counts["finished"], counts["running"], counts["waiting"]) == (2, 1, 0, 0)
