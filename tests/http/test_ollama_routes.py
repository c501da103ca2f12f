import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from support.front_door import DONE, Call, ScriptedDoor, house, model, worker

from swapd.errors import LoadFailedError

HI = [{"role": "user", "content": "hi"}]


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


async def says_hello(call: Call) -> None:
    assert json.loads(call.body)["stream"] is True
    await call.start()
    for data in (event("Hel"), event("lo"), DONE):
        await call.chunk(data)
    await call.end()


async def lines(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await response.read()).splitlines()]


async def test_a_chat_is_streamed_as_lines_unless_that_is_switched_off(tmp_path: Path) -> None:
    async with worker(tmp_path / "w", says_hello) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post("/api/chat", json={"model": "small:latest", "messages": HI}) as response:
            assert response.content_type == "application/x-ndjson"
            told = await lines(response)
        async with home.http.post("/api/chat", json={"model": "small", "messages": HI, "stream": False}) as response:
            assert (response.status, response.content_type) == (200, "application/json")
            document = await response.json()
    assert [line["message"]["content"] for line in told] == ["Hel", "lo", ""]
    assert [line["model"] for line in told] == ["small:latest"] * 3
    assert document["message"]["content"] == "Hello"
    assert document["prompt_eval_duration"] > 0
    assert [ticket.model_id for ticket in home.door.tickets] == ["org/tiny"] * 2


async def test_a_stream_that_breaks_ends_with_an_error_as_a_line_and_without_done(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(event("Hel"))
        call.die()

    door = ScriptedDoor([tmp_path / "w"], lost_why="the process was killed")
    async with worker(tmp_path / "w", script), house(door) as home:
        async with home.http.post("/api/chat", json={"model": "small", "messages": HI}) as response:
            told = await lines(response)
        assert told[0]["message"]["content"] == "Hel"
        assert "killed" in told[1]["error"]
        assert len(told) == 2
        # What is collected has sent nothing yet: it was tried once more, and has a status.
        async with home.http.post("/api/chat", json={"model": "small", "messages": HI, "stream": False}) as response:
            assert response.status == 502
            assert "killed" in (await response.json())["error"]
        assert len(home.door.tickets) == 3


async def test_a_workers_own_error_and_events_without_sense_are_errors(tmp_path: Path) -> None:
    said = b'data: {"error":{"message":"cache is full"}}\n\n'

    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(event("Hel"))
        await call.chunk(said)
        await call.end()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post("/api/chat", json={"model": "small", "messages": HI}) as response:
            assert (await lines(response))[-1] == {"error": "cache is full"}
        async with home.http.post("/api/chat", json={"model": "small", "messages": HI, "stream": False}) as response:
            assert response.status == 502
            assert (await response.json())["error"] == "cache is full"
        said = b"data: nonsense\n\n"
        async with home.http.post("/api/chat", json={"model": "small", "messages": HI}) as response:
            assert "cannot be translated" in (await lines(response))[-1]["error"]


async def test_errors_before_an_answer_have_a_status_and_a_text(tmp_path: Path) -> None:
    door = ScriptedDoor([tmp_path / "w"], refusal=LoadFailedError("it failed to load", retry_after_s=3.0))
    async with house(door) as home:
        for body, status, said in (
            ({"model": "nobody", "messages": HI}, 404, "nobody"),
            ({"model": "small", "messages": 7}, 400, "messages"),
            ({"model": "small", "messages": HI}, 503, "it failed to load"),
            ({"model": "small"}, 503, "it failed to load"),
        ):
            async with home.http.post("/api/chat", json=body) as response:
                assert response.status == status
                assert said in (await response.json())["error"]
        async with home.http.get("/api/nothing") as response:
            assert (response.status, list(await response.json())) == (404, ["error"])


async def test_how_long_a_model_stays_goes_with_the_request_or_alone() -> None:
    async with house(ScriptedDoor([Path("/nowhere")])) as home:
        async with home.http.post("/api/generate", json={"model": "small", "keep_alive": "10m"}) as response:
            assert (await response.json())["done_reason"] == "load"
        async with home.http.post("/api/generate", json={"model": "small", "prompt": "", "keep_alive": 0}) as response:
            assert (await response.json())["done_reason"] == "unload"
        async with home.http.post("/api/chat", json={"model": "small", "messages": [], "keep_alive": -1}) as response:
            assert (await response.json())["message"]["content"] == ""
        async with home.http.post("/api/chat", json={"model": "small", "messages": HI, "keep_alive": 0}) as response:
            assert response.status == 502
        assert home.door.calls == [("keep 0", "org/tiny")]
        assert [ticket.keep_alive_s for ticket in home.door.tickets] == [600.0, float("inf"), 0.0, 0.0]


async def test_json_by_curl_is_taken_and_from_a_web_page_only_by_its_name() -> None:
    body = json.dumps({"model": "small", "prompt": "", "keep_alive": 0})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with house(ScriptedDoor()) as home:
        async with home.http.post("/api/generate", data=body, headers=form) as response:
            assert response.status == 200
        for mark in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            async with home.http.post("/api/generate", data=body, headers=form | mark) as response:
                assert response.status in (400, 403)
        assert len(home.door.calls) == 1


async def test_lists_name_models_with_a_tag_and_join_on_it() -> None:
    door = ScriptedDoor(known=[model("tiny"), model("org/big:q4")])
    async with house(door) as home:
        async with home.http.get("/api/tags") as response:
            tags = (await response.json())["models"]
        async with home.http.get("/api/ps") as response:
            loaded = {one["model"]: one for one in (await response.json())["models"]}
        assert [one["name"] for one in tags] == ["tiny:latest", "org/big:q4"]
        for one in tags:
            assert datetime.fromisoformat(loaded[one["name"]]["expires_at"]) > datetime.now(UTC)
        for name in ("tiny", "tiny:latest", "org/big:q4"):
            async with home.http.post("/api/show", json={"model": name}) as response:
                assert {"details", "model_info", "capabilities"} <= set(await response.json())
        async with home.http.post("/api/show", json={"name": "big"}) as response:
            assert response.status == 404


async def test_the_root_says_what_clients_look_for_and_a_browser_reads_something_else() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/") as response:
            assert await response.text() == "Ollama is running"
        async with home.http.head("/") as response:
            assert response.status == 200
        async with home.http.get("/", headers={"Accept": "text/html,*/*;q=0.8"}) as response:
            assert "Ollama" not in await response.text()
        async with home.http.get("/api/version") as response:
            assert [int(part) for part in (await response.json())["version"].split(".")]


async def test_what_would_change_the_list_is_refused_with_the_remedy() -> None:
    async with house(ScriptedDoor()) as home:
        for method, path in (("POST", "create"), ("DELETE", "delete"), ("POST", "copy"), ("POST", "push")):
            async with home.http.request(method, f"/api/{path}", json={"model": "x"}) as response:
                assert response.status == 501
                assert "list" in (await response.json())["error"]
        async with home.http.post("/api/pull", json={"model": "other"}) as response:
            assert response.status == 501
        async with home.http.post("/api/pull", json={"model": "small:latest"}) as response:
            assert await response.read() == b'{"status":"success"}\n'


async def test_vectors_and_a_client_that_leaves_a_collected_answer(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        if "embeddings" in call.head:
            await call.whole(b'{"data":[{"index":0,"embedding":[0.5]}],"usage":{"prompt_tokens":2}}')
            return
        await call.start()
        await call.chunk(event("Hel"))
        await call.closed()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post("/api/embed", json={"model": "small", "input": "a"}) as response:
            assert (await response.json())["embeddings"] == [[0.5]]
        body = {"model": "small", "messages": HI, "stream": False}
        leaving = asyncio.create_task(home.http.post("/api/chat", json=body).__aenter__())
        while len(home.door.tickets) < 2:
            home.door.asked.clear()
            await home.door.asked.wait()
        leaving.cancel()
        assert await home.door.left(2) == ["finished", "cancelled"]
