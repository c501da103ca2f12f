"""A virtual model at the front door: from target to target until one serves, and what the client sees of that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from support.front_door import CHAT, DONE, Call, House, ScriptedDoor, chat_body, house, model, params, worker

from swapd.config.schema import Virtual
from swapd.core.routing import Standing
from swapd.errors import (
    BadRequestError,
    ClientLimitError,
    InvalidModelFileError,
    LoadFailedError,
    LoadTimeoutError,
    ModelDoesNotFitError,
    QueueFullError,
    QueueTimeoutError,
    ShuttingDownError,
    SwapdError,
    UnknownModelError,
)
from swapd.http.exchange import Bounds
from swapd.http.routing import gathered

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
ASK = chat_body(model="assistant")


def door_to(tmp_path: Path, **fields: object) -> ScriptedDoor:
    virtual = Virtual(id="assistant", strategy="fallback", targets=("a", "bee", "c"), max_wait_s=0.05)
    known = [
        model("a", params=params(set={"from": "a"})),
        model("b", aliases=("bee",), alias_params={"bee": params(set={"from": "bee"})}, model_name="org/b"),
        model("c"),
    ]
    sockets = {name: tmp_path / name for name in "abc"}
    return ScriptedDoor(known=known, virtual=[virtual], workers_of=sockets, **fields)  # type: ignore[arg-type]


async def answer(call: Call) -> None:
    """Whole or streamed, with what it was sent."""
    if json.loads(call.body).get("stream"):
        await call.start()
        await call.chunk(EVENT + DONE)
        await call.end()
    else:
        await call.whole(call.body)


async def fail(call: Call) -> None:
    await call.whole(b'{"error": {"message": "CUDA error"}}', "500 Internal Server Error")


async def refuse(call: Call) -> None:
    await call.whole(b'{"error": {"message": "too long"}}', "400 Bad Request")


async def die(call: Call) -> None:
    call.die()


@asynccontextmanager
async def served(door: ScriptedDoor, bounds: Bounds | None = None, **scripts: object) -> AsyncIterator[House]:
    """Workers of a, b and c that answer, unless a script says otherwise."""
    paths = door.workers_of
    async with (
        worker(paths["a"], scripts.get("a", answer)),  # type: ignore[arg-type]
        worker(paths["b"], scripts.get("b", answer)),  # type: ignore[arg-type]
        worker(paths["c"], scripts.get("c", answer)),  # type: ignore[arg-type]
        house(door, bounds=bounds) as home,
    ):
        yield home
        assert door.held == 0
        # No more, and none left: each lease has ended before the answer did.
        assert len(door.outcomes) == len(door.tickets)


async def asked(home: House, **fields: object) -> tuple[aiohttp.ClientResponse, bytes]:
    async with home.http.post(CHAT, json={**ASK, **fields}) as response:
        return response, await response.read()


async def test_the_first_target_serves_with_its_own_params_and_the_answer_says_who(tmp_path: Path) -> None:
    async with served(door_to(tmp_path)) as home:
        response, body = await asked(home)
        assert (response.status, response.headers["X-Swapd-Model"]) == (200, "a")
        assert json.loads(body) == {**ASK, "model": "a", "from": "a"}
        assert home.door.outcomes == ["finished"]


@pytest.mark.parametrize(
    "error",
    [
        LoadFailedError("x", retry_after_s=9.0),
        LoadTimeoutError("x"),
        QueueTimeoutError("x"),
        ModelDoesNotFitError("x"),
        InvalidModelFileError("x"),
        QueueFullError("x"),
        UnknownModelError("x"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_with_one_target_sends_the_request_to_the_next(
    error: SwapdError, stream: bool, tmp_path: Path
) -> None:
    async with served(door_to(tmp_path, refusals={"a": error})) as home:
        response, body = await asked(home, stream=stream)
        assert (response.status, response.headers["X-Swapd-Model"]) == (200, "b")
        assert body == EVENT + DONE if stream else json.loads(body)["from"] == "bee"
        assert home.door.outcomes == ["failed", "finished"]
        assert [ticket.model_id for ticket in home.door.tickets] == ["a", "b"]


@pytest.mark.parametrize("error", [BadRequestError("x"), ClientLimitError("x"), ShuttingDownError("x")])
async def test_what_would_be_the_same_everywhere_does_not(error: SwapdError, tmp_path: Path) -> None:
    async with served(door_to(tmp_path, refusals={"a": error})) as home:
        response, _ = await asked(home)
        assert response.status == error.status
        assert home.door.outcomes == ["failed"]


async def test_a_target_is_asked_by_its_alias_and_its_worker_told_its_own_name(tmp_path: Path) -> None:
    async with served(door_to(tmp_path, refusals={"a": QueueFullError("x")})) as home:
        _, body = await asked(home)
        assert json.loads(body) == {**ASK, "model": "org/b", "from": "bee"}


@pytest.mark.parametrize("script", [fail, die])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_fails_or_dies_before_its_answer_is_not_asked_again_while_others_can(
    script: object, stream: bool, tmp_path: Path
) -> None:
    async with served(door_to(tmp_path), a=script) as home:
        response, _ = await asked(home, stream=stream)
        assert (response.status, response.headers["X-Swapd-Model"]) == (200, "b")
        assert home.door.outcomes == ["failed", "finished"]


async def test_a_workers_own_refusal_of_the_request_is_the_answer(tmp_path: Path) -> None:
    async with served(door_to(tmp_path), a=refuse) as home:
        response, body = await asked(home)
        assert (response.status, json.loads(body)["error"]["message"]) == (400, "too long")
        assert [ticket.model_id for ticket in home.door.tickets] == ["a"]


async def test_an_answer_that_broke_after_its_first_byte_is_not_begun_again_elsewhere(tmp_path: Path) -> None:
    async def breaks(call: Call) -> None:
        await call.start()
        await call.chunk(EVENT)
        call.die()

    async with served(door_to(tmp_path), a=breaks) as home:
        _, body = await asked(home, stream=True)
        assert body.startswith(EVENT)
        assert b'"worker_lost"' in body
        assert b"[DONE]" not in body
        assert home.door.outcomes == ["failed"]


async def test_a_wait_beyond_max_wait_ends_the_lease_and_goes_to_the_next(tmp_path: Path) -> None:
    async with served(door_to(tmp_path, gates={"a": asyncio.Event()})) as home:
        response, _ = await asked(home)
        assert (response.status, response.headers["X-Swapd-Model"]) == (200, "b")
        assert home.door.outcomes == ["cancelled", "finished"]
        assert float(response.headers["X-Swapd-Queue-Time"]) >= 0.05


async def test_the_last_target_is_waited_for_as_long_as_its_queue_lets_it(tmp_path: Path) -> None:
    gate = asyncio.Event()
    refusals: dict[str, SwapdError] = {"a": QueueFullError("x"), "b": QueueFullError("x")}
    async with served(door_to(tmp_path, gates={"c": gate}, refusals=refusals)) as home:
        asking = asyncio.create_task(asked(home))
        await home.door.reached("c")
        done, _ = await asyncio.wait({asking}, timeout=0.15)
        assert not done
        gate.set()
        response, _ = await asking
        assert response.headers["X-Swapd-Model"] == "c"


async def test_a_grant_that_came_in_time_is_not_taken_back_by_the_bound_on_the_wait(tmp_path: Path) -> None:
    async def slow(call: Call) -> None:
        await call.start()
        for _ in range(4):
            await call.chunk(EVENT)
            await asyncio.sleep(0.03)
        await call.chunk(DONE)
        await call.end()

    async with served(door_to(tmp_path), a=slow) as home:
        _, body = await asked(home, stream=True)
        assert body == 4 * EVENT + DONE


async def test_while_a_stream_waits_its_comments_name_the_target_and_its_failure_does_not_end_it(
    tmp_path: Path,
) -> None:
    door = door_to(tmp_path, gates={"a": asyncio.Event()})
    async with served(door, Bounds(comment_every_s=0.02, why_lost_s=0.05), b=fail) as home:
        response, body = await asked(home, stream=True)
        assert response.status == 200
        assert body.startswith(b": waiting for a\n\n")
        assert body.endswith(EVENT + DONE)
        assert [ticket.model_id for ticket in door.tickets] == ["a", "b", "c"]


async def test_when_all_fail_the_client_is_told_of_each_and_when_to_come_again(tmp_path: Path) -> None:
    refusals: dict[str, SwapdError] = {
        "a": ModelDoesNotFitError("too large"),
        "b": LoadFailedError("backing off", retry_after_s=7.0),
        "c": InvalidModelFileError("no file"),
    }
    async with served(door_to(tmp_path, refusals=refusals)) as home:
        response, body = await asked(home)
        error = json.loads(body)["error"]
        assert (response.status, response.headers["Retry-After"], error["code"]) == (503, "7", "model_load_failed")
        assert "a: too large; bee: backing off; c: no file" in error["message"]


async def test_the_last_workers_own_error_is_relayed_as_it_is(tmp_path: Path) -> None:
    async with served(door_to(tmp_path), a=fail, b=fail, c=fail) as home:
        response, body = await asked(home)
        assert (response.status, json.loads(body)["error"]["message"]) == (500, "CUDA error")
        assert response.headers["X-Swapd-Model"] == "c"


async def test_metrics_and_the_record_carry_the_model_that_served(tmp_path: Path) -> None:
    async with served(door_to(tmp_path, refusals={"a": QueueFullError("x")})) as home:
        await asked(home)
        text = home.metrics.render().decode()
        assert 'swapd_requests_total{code="200",endpoint="/v1/chat/completions",model="b"} 1.0' in text
        assert "assistant" not in text


async def test_standings_decide_where_a_request_begins(tmp_path: Path) -> None:
    stands = {"c": Standing("c", ready=True, free=True, wait_s=0.0), "a": Standing("a", wait_s=9.0, guess_s=9.0)}
    async with served(door_to(tmp_path, stands=stands)) as home:
        home.door.virtual = [Virtual(id="assistant", strategy="spillover", targets=("a", "c"))]
        response, _ = await asked(home)
        assert response.headers["X-Swapd-Model"] == "c"


@pytest.mark.parametrize("waiting_at", ["a", "b", "c"])
async def test_a_client_that_leaves_while_it_waits_for_any_target_leaves_no_lease(
    waiting_at: str, tmp_path: Path
) -> None:
    refused: dict[str, SwapdError] = {name: QueueFullError("x") for name in "abc" if name < waiting_at}
    door = door_to(tmp_path, gates={waiting_at: asyncio.Event()}, refusals=refused)
    door.virtual = [Virtual(id="assistant", strategy="fallback", targets=("a", "bee", "c"))]
    async with served(door) as home:
        asking = asyncio.create_task(asked(home))
        await door.reached(waiting_at)
        asking.cancel()
        outcomes = await door.left(len(refused) + 1)
        assert outcomes == ["failed"] * len(refused) + ["cancelled"]


async def test_a_client_that_leaves_while_the_next_target_answers_frees_its_place(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def hangs(call: Call) -> None:
        await call.start()
        await call.chunk(EVENT)
        begun.set()
        await call.closed()

    async with served(door_to(tmp_path, refusals={"a": QueueFullError("x")}), b=hangs) as home:
        asking = asyncio.create_task(asked(home, stream=True))
        await begun.wait()
        asking.cancel()
        assert await home.door.left(2) == ["failed", "cancelled"]


def test_one_failure_is_told_as_it_is() -> None:
    error = QueueFullError("full", retry_after_s=3.0)
    assert gathered("assistant", [("a", error)]) is error


async def test_profiles_are_shown_and_switched() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/swapd/v1/profiles") as response:
            assert [one["name"] for one in (await response.json())["profiles"]] == ["gaming", "work"]
        path = "/swapd/v1/profiles/active"
        async with home.http.put(path, json={"profile": "work"}) as response:
            assert (response.status, (await response.json())["active"]) == (200, "work")
        async with home.http.put(path, json={"profile": None}) as response:
            assert (response.status, (await response.json())["active"]) == (200, None)
        for body, status in (({"profile": "x"}, 404), ({}, 400), ({"profile": 3}, 400), ({"name": "work"}, 400)):
            async with home.http.put(path, json=body) as response:
                assert response.status == status, body
        async with home.http.put(path, data="profile=work") as response:
            assert response.status == 400
