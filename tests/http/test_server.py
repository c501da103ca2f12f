import asyncio
import io
import json
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.front_door import CHAT, Call, House, ScriptedDoor, chat_body, house, model, params, worker

from swapd.errors import LoadFailedError, QueueFullError

CHAT_OK = '"model":"org/tiny","messages":[{"role":"user","content":"x"}]'


async def raw(home: House, request: bytes) -> bytes:
    """Everything the daemon answers to these bytes until it closes, or to one request that asks it to."""
    reader, writer = await asyncio.open_connection(home.host, home.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, "{" + CHAT_OK, None),
        (CHAT, "[1]", None),
        (CHAT, "{}", "model"),
        (CHAT, '{"model":7,"messages":[]}', "model"),
        (CHAT, '{"model":"org/tiny"}', "messages"),
        (CHAT, '{"model":"org/tiny","messages":[]}', "messages"),
        (CHAT, '{"model":"org/tiny","messages":[7]}', "messages[0]"),
        (CHAT, '{"model":"org/tiny","messages":[{"content":"x"}]}', "messages[0].role"),
        (CHAT, '{"model":"org/tiny","messages":[{"role":"user","content":7}]}', "messages[0].content"),
        (CHAT, "{" + CHAT_OK + ',"temperature":NaN}', "temperature"),
        (CHAT, "{" + CHAT_OK + ',"temperature":1e999}', "temperature"),
        (CHAT, "{" + CHAT_OK + ',"top_p":1.5}', "top_p"),
        (CHAT, "{" + CHAT_OK + ',"stream":"yes"}', "stream"),
        (CHAT, "{" + CHAT_OK + ',"n":0}', "n"),
        (CHAT, "{" + CHAT_OK + ',"max_tokens":"9"}', "max_tokens"),
        (CHAT, "{" + CHAT_OK + ',"stop":[1]}', "stop[0]"),
        (CHAT, "{" + CHAT_OK + ',"seed":1' + "0" * 5000 + "}", "seed"),
        (CHAT, "{" + CHAT_OK + ',"model":"other"}', "model"),
        (CHAT, "{" + CHAT_OK + ',"x":' + "[" * 5000 + "]" * 5000 + "}", None),
        (CHAT, '{"a":' * 5000, None),
        ("/v1/completions", '{"model":"org/tiny"}', "prompt"),
        ("/v1/completions", '{"model":"org/tiny","prompt":[]}', "prompt"),
        ("/v1/completions", '{"model":"org/tiny","prompt":["a",1]}', "prompt"),
        ("/v1/embeddings", '{"model":"org/tiny","input":{}}', "input"),
        ("/v1/embeddings", '{"model":"org/tiny","input":[[1],[-1]]}', "input[1][0]"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_the_field(path: str, body: str, param: str | None) -> None:
    async with house(ScriptedDoor()) as home:
        headers = {"Content-Type": "application/json"}
        async with home.http.post(path, data=body.encode(), headers=headers) as response:
            assert response.status == 400
            error = (await response.json())["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert param is None or param in error["message"]
        assert home.door.tickets == []
        async with home.http.get("/health") as response:
            assert response.status == 200


async def test_every_endpoint_is_passed_to_a_worker_under_its_own_path(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        path = call.head.split()[1]
        await call.whole(json.dumps({"path": path, "model": json.loads(call.body)["model"]}).encode())

    bodies: dict[str, dict[str, object]] = {
        "/v1/rerank": {"query": "q", "documents": ["d"]},
        "/v1/reranking": {"query": "q", "documents": ["d"]},
        "/rerank": {"query": "q", "documents": ["d"]},
        "/reranking": {"query": "q", "documents": ["d"]},
        "/completion": {"prompt": "a"},
        "/completions": {"prompt": "a"},
        "/infill": {"input_prefix": "a", "input_suffix": "b"},
        "/tokenize": {"content": "a"},
        "/detokenize": {"tokens": [1]},
        "/apply-template": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/chat/completions/input_tokens": {"messages": [{"role": "user", "content": "x"}]},
    }
    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        for route, body in bodies.items():
            async with home.http.post(route, json={"model": "small", **body}) as response:
                answer = await response.json()
            asked = {"/completions": "/completion"}.get(route, "/v1/rerank" if "rerank" in route else route)
            assert answer == {"path": asked, "model": "org/tiny"}
    assert [ticket.needs for ticket in home.door.tickets] == ["rerank"] * 4 + ["completions"] * 3 + [None] * 4


async def test_a_body_that_is_not_json_by_its_type_is_refused() -> None:
    async with house(ScriptedDoor()) as home:
        for content_type in ("text/plain", "application/x-www-form-urlencoded"):
            body = json.dumps(chat_body())
            async with home.http.post(CHAT, data=body, headers={"Content-Type": content_type}) as response:
                assert response.status == 400
                assert "application/json" in (await response.json())["error"]["message"]
            load = "/swapd/v1/models/org/tiny/load"
            async with home.http.post(load, data=b"", headers={"Content-Type": content_type}) as response:
                assert response.status == 400
        assert home.door.calls == []


async def test_a_declared_length_over_the_limit_is_413_before_the_body_is_asked_for() -> None:
    async with house(ScriptedDoor(), max_body_bytes=1000) as home:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            "Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(home.host, home.port)
        writer.write(head.encode())
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413")


async def test_a_chunked_body_over_the_limit_is_413() -> None:
    async with house(ScriptedDoor(), max_body_bytes=100_000) as home:
        reader, writer = await asyncio.open_connection(home.host, home.port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(101):
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413")
            assert b'"request_too_large"' in await reader.readuntil(b"}}")
        writer.close()


async def test_expect_continue_is_answered_when_the_length_is_fine(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"{}")

    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path])) as home,
        home.http.post(CHAT, json=chat_body(), expect100=True) as response,
    ):
        assert response.status == 200


async def test_malformed_chunking_is_a_400() -> None:
    async with house(ScriptedDoor()) as home:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        assert (await raw(home, head.encode() + b"zz\r\n")).split(b" ")[1] == b"400"


async def test_an_unknown_model_is_404_with_close_names_and_no_label() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.post(CHAT, json=chat_body(model="org/tinny")) as response:
            assert response.status == 404
            error = (await response.json())["error"]
        assert error["code"] == "model_not_found"
        assert "org/tiny" in error["message"]
        assert b"tinny" not in home.metrics.render()
        assert b'swapd_requests_total{code="404",endpoint="/v1/chat/completions",model=""} 1.0' in home.metrics.render()


async def test_unknown_paths_and_methods_get_the_envelope() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/v1/nothing") as response:
            assert response.status == 404
            assert (await response.json())["error"]["type"] == "not_found_error"
        async with home.http.get(CHAT) as response:
            assert response.status == 405
            assert response.headers["Allow"] == "POST"
            assert (await response.json())["error"]["type"] == "invalid_request_error"
        async with home.http.get("/swapd/v1/models/org/tiny/load") as response:
            assert response.status in (404, 405)
        assert home.door.calls == []


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_carries_its_status_and_retry_after_in_whole_seconds(stream: bool) -> None:
    door = ScriptedDoor(refusal=QueueFullError("256 requests wait for org/tiny already", retry_after_s=2.1))
    async with house(door) as home, home.http.post(CHAT, json=chat_body(stream=stream)) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "3"
        assert (await response.json())["error"]["code"] == "queue_full"
        assert response.headers["X-Request-Id"].startswith("req-")


async def test_an_unexpected_error_is_a_500_without_internals() -> None:
    class Broken(ScriptedDoor):
        def status(self) -> object:  # type: ignore[override]
            raise RuntimeError("secret detail")

    async with house(Broken()) as home, home.http.get("/swapd/v1/status") as response:
        assert response.status == 500
        text = await response.text()
        assert "secret" not in text
        assert json.loads(text)["error"]["type"] == "server_error"


async def test_a_harmful_request_id_is_replaced_and_one_in_use_is_made_distinct(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"{}")

    door = ScriptedDoor([tmp_path / "w"], gate=asyncio.Event())
    async with worker(tmp_path / "w", script), house(door) as home:
        headers = {"X-Request-Id": "same"}
        first = asyncio.create_task(home.http.post(CHAT, json=chat_body(), headers=headers))
        await door.asked.wait()
        async with home.http.get("/health", headers={"X-Request-Id": 'a"b' * 40}) as response:
            assert response.headers["X-Request-Id"].startswith("req-")
        async with home.http.get("/health", headers=headers) as response:
            assert response.headers["X-Request-Id"].startswith("same.")
        assert door.gate is not None
        door.gate.set()
        (await first).close()


async def test_the_worker_gets_the_real_id_and_the_models_params(tmp_path: Path) -> None:
    bodies = []

    async def script(call: Call) -> None:
        bodies.append(json.loads(call.body))
        await call.whole(b"{}")

    known = model(aliases=("small",), params=params(set={"temperature": 0.7}, strip=("top_k", "user")))
    door = ScriptedDoor([tmp_path / "w"], known=[known])
    async with worker(tmp_path / "w", script), house(door) as home:
        body = chat_body(model="small", temperature=0.1, top_k=5, user="u", mirostat=2)
        async with home.http.post(CHAT, json=body) as response:
            assert response.status == 200
        assert bodies == [{"model": "org/tiny", "messages": body["messages"], "temperature": 0.7, "mirostat": 2}]


async def test_a_large_body_is_answered_like_a_small_one(tmp_path: Path) -> None:
    sizes = []

    async def script(call: Call) -> None:
        sizes.append(len(call.body))
        await call.whole(b"{}")

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        body = json.dumps(chat_body(messages=[{"role": "user", "content": "x" * 3_000_000}])).encode()
        headers = {"Content-Type": "application/json"}
        async with home.http.post(CHAT, data=io.BytesIO(body), headers=headers) as response:
            assert response.status == 200
        assert sizes[0] > 3_000_000


async def test_models_are_listed_in_order_and_found_by_id_and_alias() -> None:
    door = ScriptedDoor(known=[model("org/b", aliases=("bee",)), model("org/a")])
    async with house(door) as home:
        async with home.http.get("/v1/models") as response:
            listed = await response.json()
        assert [entry["id"] for entry in listed["data"]] == ["org/b", "org/a"]
        assert listed["data"][0]["state"] == "ready"
        assert listed["data"][0]["context_length"] == listed["data"][0]["max_input_tokens"] == 2048
        for name in ("org/b", "bee", "org%2Fb"):
            async with home.http.get(f"/v1/models/{name}") as response:
                assert (await response.json())["id"] == "org/b"
        async with home.http.get("/v1/models/org/c") as response:
            assert response.status == 404


async def test_health_is_503_unless_the_daemon_can_serve() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        home.door.is_ready = False
        async with home.http.get("/health") as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"


async def test_metrics_parse_and_show_the_pools_snapshot() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/metrics") as response:
            assert response.content_type == "text/plain"
            families = {family.name: family for family in text_string_to_metric_families(await response.text())}
        assert families["swapd_requests_waiting"].samples[0].value == 2
        kinds = {sample.labels["kind"] for sample in families["swapd_device_memory_bytes"].samples}
        assert kinds == {"budget", "reserved", "free", "others"}


async def test_status_has_the_documented_shape() -> None:
    async with house(ScriptedDoor()) as home, home.http.get("/swapd/v1/status") as response:
        status = await response.json()
        assert status["devices"][0]["budget_bytes"] == 8
        assert status["models"][0]["workers"][0]["reserved_bytes"] == {"RAM": 7}
        assert {"config", "version"} <= status.keys()


async def test_load_and_unload_are_posts_that_take_ids_with_slashes_and_aliases() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.post("/swapd/v1/models/org/tiny/load") as response:
            assert (await response.json())["id"] == "org/tiny"
        async with home.http.post("/swapd/v1/models/small/unload", json={}) as response:
            assert response.status == 200
        async with home.http.post("/swapd/v1/models/nope/load") as response:
            assert response.status == 404
        assert home.door.calls == [("load", "org/tiny"), ("unload", "org/tiny")]


async def test_models_are_pinned_and_unpinned_by_posts() -> None:
    async with house(ScriptedDoor()) as home:
        for change in ("pin", "unpin"):
            async with home.http.post(f"/swapd/v1/models/small/{change}") as response:
                assert (await response.json())["id"] == "org/tiny"
    assert home.door.calls == [("pin", "org/tiny"), ("unpin", "org/tiny")]


async def test_models_are_listed_at_llama_servers_path_too() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/models") as response, home.http.get("/v1/models") as known:
            assert [one["id"] for one in (await response.json())["data"]] == ["org/tiny"]
            assert await response.read() == await known.read()


async def test_all_models_are_unloaded_by_one_post() -> None:
    door = ScriptedDoor(known=[model("a"), model("b")])
    async with house(door) as home, home.http.post("/swapd/v1/unload") as response:
        assert [one["id"] for one in (await response.json())["models"]] == ["a", "b"]
    assert sorted(door.calls) == [("unload", "a"), ("unload", "b")]


async def test_devices_are_paused_and_resumed_by_posts() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.post("/swapd/v1/devices/CUDA0/pause") as response:
            assert (await response.json())["paused"] is True
        async with home.http.post("/swapd/v1/devices/CUDA0/resume", json={}) as response:
            assert (await response.json())["paused"] is False
        async with home.http.post("/swapd/v1/devices/CUDA9/resume") as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "device_not_found"
        async with home.http.get("/swapd/v1/devices/CUDA0/pause") as response:
            assert response.status == 405
        assert home.door.calls == [("pause", "CUDA0"), ("resume", "CUDA0"), ("resume", "CUDA9")]


async def test_a_failed_load_is_told_with_its_status() -> None:
    class Failing(ScriptedDoor):
        async def load(self, model_id: str) -> object:  # type: ignore[override]
            raise LoadFailedError("out of memory", retry_after_s=4)

    async with house(Failing()) as home, home.http.post("/swapd/v1/models/org/tiny/load") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "4"


async def test_logs_come_as_text_or_as_events_and_cannot_move_a_cursor() -> None:
    async with house(ScriptedDoor(lines=["one", "two\x1b[2J\rx"])) as home:
        async with home.http.get("/swapd/v1/logs/org/tiny") as response:
            assert response.content_type == "text/plain"
            assert await response.text() == "one\ntwo\\x1b[2J\\x0dx\n"
        async with home.http.get("/swapd/v1/logs/small?follow=1") as response:
            assert response.content_type == "text/event-stream"
            assert await response.content.readuntil(b"\n\n") == b"data: one\n\n"
        async with home.http.get("/swapd/v1/logs/small?follow=maybe") as response:
            assert (await response.json())["error"]["param"] == "follow"


async def test_ended_requests_are_streamed_as_they_end() -> None:
    async with house(ScriptedDoor()) as home, home.http.get("/swapd/v1/requests") as response:
        assert response.content_type == "text/event-stream"
        event = json.loads((await response.content.readuntil(b"\n\n")).removeprefix(b"data: "))
        assert (event["model"], event["service_s"], event["completion_tokens"]) == ("org/tiny", 2.0, 4)


async def test_happenings_stream_until_the_daemon_stops() -> None:
    async with aiohttp.ClientSession() as http:
        async with house(ScriptedDoor()) as home:
            response = await http.get(f"{home.url}/swapd/v1/events")
            event = await response.content.readuntil(b"\n\n")
            assert json.loads(event.removeprefix(b"data: "))["kind"] == "loaded"
        # The server has stopped by now, and the stream ended whole, not broken.
        assert await response.read() == b""
