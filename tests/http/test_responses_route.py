"""/v1/responses through the front door: stored responses, and whose they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.chat_answers import USAGE, chunk, read_events, whole
from support.front_door import DONE, Call, ScriptedDoor, house, worker

RESPONSES = "/v1/responses"
ASK: dict[str, Any] = {"model": "small", "input": "Hello"}
CHUNKS = [chunk(role="assistant", content=""), chunk(content="Hi."), chunk("stop"), chunk(usage=USAGE)]
STREAM = b"".join(b"data: " + one + b"\n\n" for one in CHUNKS) + DONE
ME, YOU = {"Authorization": "Bearer me"}, {"Authorization": "Bearer you"}


async def test_a_conversation_goes_on_by_the_id_of_its_last_response(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    async def script(call: Call) -> None:
        bodies.append(json.loads(call.body))
        if bodies[-1].get("stream"):
            await call.start()
            await call.chunk(STREAM)
            await call.end()
        else:
            await call.whole(whole(content="Hi."))

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(RESPONSES, json={**ASK, "stream": True, "instructions": "Be kind."}) as response:
            first = read_events(await response.read())[-1]["response"]
        asked = {**ASK, "input": "And?", "previous_response_id": first["id"]}
        async with home.http.post(RESPONSES, json=asked) as response:
            second = await response.json()
            assert response.status == 200
        async with home.http.post(RESPONSES, json={**asked, "previous_response_id": second["id"]}) as response:
            assert response.status == 200
    assert [len(body["messages"]) for body in bodies] == [2, 3, 5]
    assert bodies[2]["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And?"},
    ]
    assert second["previous_response_id"] == first["id"] != second["id"]


async def test_a_stored_response_is_its_clients_alone(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(whole(content="Hi."))

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(RESPONSES, json=ASK, headers=ME) as response:
            mine = await response.json()
        place = f"{RESPONSES}/{mine['id']}"
        asked = {**ASK, "previous_response_id": mine["id"]}
        async with home.http.post(RESPONSES, json=asked, headers=YOU) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (400, "previous_response_not_found")
        for method in (home.http.get, home.http.delete):
            async with method(place, headers=YOU) as response:
                assert response.status == 404
        async with home.http.get(place, headers=ME) as response:
            assert await response.json() == mine
        async with home.http.get(place, params={"stream": "true"}, headers=ME) as response:
            assert response.status == 400
        async with home.http.delete(place, headers=ME) as response:
            assert await response.json() == {"id": mine["id"], "object": "response", "deleted": True}
        async with home.http.get(place, headers=ME) as response:
            assert response.status == 404


async def test_nothing_is_stored_that_is_not_to_be_or_did_not_end(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        if json.loads(call.body).get("stream"):
            await call.start()
            await call.chunk(STREAM[: STREAM.index(b"stop")])
            call.die()
        else:
            await call.whole(whole(content="Hi."))

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path], lost_why="it was killed")) as home:
        async with home.http.post(RESPONSES, json={**ASK, "store": False}) as response:
            document = await response.json()
            assert document["store"] is False
        async with home.http.post(RESPONSES, json={**ASK, "stream": True}) as response:
            failed = read_events(await response.read())[-1]
            assert failed["type"] == "response.failed"
        for response_id in (document["id"], failed["response"]["id"]):
            async with home.http.get(f"{RESPONSES}/{response_id}") as response:
                assert response.status == 404


async def test_what_is_gone_on_from_counts_as_a_body_in_flight(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(whole(content="Hi."))

    bounds = {"max_body_bytes": 10_000, "max_bodies_bytes": 10_000}
    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path]), **bounds) as home:
        asked = {**ASK, "input": "x" * 6_000}
        async with home.http.post(RESPONSES, json=asked) as response:
            first = await response.json()
        async with home.http.post(RESPONSES, json={**asked, "previous_response_id": first["id"]}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "queue_full")
