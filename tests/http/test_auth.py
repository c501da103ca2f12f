"""Keys at the front door: every route with every kind of key, and what a key may see, use and take."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp import web
from support.front_door import CHAT, Call, House, ScriptedDoor, book_in_memory, chat_body, house, model, worker
from support.routes import all_routes

from swapd.config.keys import ApiKey, Scope, digest
from swapd.config.schema import Config
from swapd.errors import ModelForbiddenError, QueueFullError
from swapd.http.auth import SCOPES, Open, check_routes
from swapd.http.keyed_door import HOLDER_OF_TASK, behind_keys
from swapd.http.keyring import Keyring
from swapd.http.passthrough import split_target
from swapd.http.server import make_app
from swapd.observe.metrics import Metrics
from swapd.pool.lease import Ticket


def ring(**fields: object) -> Keyring:
    """A key for each scope, called like it, and the key `own` with the given fields."""
    keys = [ApiKey(name=scope, digest=digest(scope), scopes=(scope,)) for scope in Scope]
    keys.append(ApiKey(name="own", digest=digest("own"), **fields))  # type: ignore[arg-type]
    return Keyring({key.digest: key for key in keys}, asyncio.get_running_loop().time, lambda: 0.0)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def status_of(home: House, method: str, path: str, headers: dict[str, str]) -> int:
    async with home.http.request(method, path, headers=headers) as response:
        if response.status == 401:
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="swapd"'
        if response.status in (401, 403) and method != "HEAD":
            error = (await response.json())["error"]
            # Ollama's are texts.
            told = error["type"] if isinstance(error, dict) else path.startswith("/api/")
            assert told in ("authentication_error", "permission_error", True)
        return response.status


async def test_every_route_takes_no_key_but_one_that_is_for_it() -> None:
    async with house(ScriptedDoor(), keyring=ring()) as home:
        for method, pattern, path in all_routes():
            needed = SCOPES[pattern]
            unknown = [{}, bearer("wrong"), bearer(""), {"Authorization": "Basic own"}, {"X-Api-Key": "wrong"}]
            for headers in unknown:
                wanted = {200} if needed is Open.OPEN else {401}
                assert {await status_of(home, method, path, headers)} == wanted, (method, pattern, headers)
            for scope in Scope:
                good = needed in (Open.OPEN, scope) or (needed, scope) == (Scope.METRICS, Scope.ADMIN)
                for headers in (bearer(scope), {"X-Api-Key": scope}):
                    refused = await status_of(home, method, path, headers) in (401, 403)
                    assert refused is not good, (method, pattern, scope)


async def test_nothing_happens_for_a_request_that_is_refused() -> None:
    async with house(ScriptedDoor(), keyring=ring()) as home:
        for headers in ({}, bearer("metrics"), bearer("inference")):
            async with home.http.post("/swapd/v1/models/org/tiny/load", headers=headers) as response:
                assert response.status in (401, 403)
        async with home.http.post(CHAT, json=chat_body(), headers=bearer("admin")) as response:
            assert response.status == 403
            assert "needs inference" in (await response.json())["error"]["message"]
        assert home.door.calls == []
        assert home.door.tickets == []


async def test_a_path_without_a_route_is_told_to_holders_of_a_key_alone() -> None:
    async with house(ScriptedDoor(), keyring=ring()) as home:
        for path in ("/nothing", "/health/../metrics", "/HEALTH", "/health/", "/%6detrics/"):
            assert await status_of(home, "GET", path, {}) == 401, path
        assert await status_of(home, "GET", "/nothing", bearer("metrics")) == 404
        assert await status_of(home, "GET", CHAT, bearer("metrics")) == 405


def test_a_route_that_nobody_has_thought_about_is_found_at_the_start() -> None:
    async def handle(_request: web.Request) -> web.Response:
        return web.Response()

    with book_in_memory() as book:
        app = make_app(ScriptedDoor(), Config, Metrics(), book)
    app.router.add_get("/new", handle)
    with pytest.raises(RuntimeError, match=r"routes without a scope .*: /new"):
        check_routes(app)
    assert {pattern for _, pattern, _ in all_routes()} == set(SCOPES)


async def test_no_get_changes_anything() -> None:
    door = ScriptedDoor()
    answers = {"/v1/responses/{id}": 404, "/api/blobs/{digest}": 501, "/v1/audio/voices": 400, "/sdapi/v1/loras": 400}
    async with house(door) as home:
        for method, pattern, path in all_routes():
            assert method in ("GET", "HEAD", "POST", "PUT", "DELETE"), pattern
            # What GET means at a worker is the worker's to say: see test_passthrough.
            if method in ("POST", "PUT", "DELETE") or pattern == "/upstream/{target}":
                continue
            async with home.http.request(method, path) as response:
                assert response.status == answers.get(pattern, 200), path
    assert door.calls == []
    assert door.tickets == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Authorization", "bearer  own ")], 200),
        ([("Authorization", "Basic b3du"), ("X-Api-Key", "own")], 200),
        ([("Authorization", "Bearer own"), ("X-Api-Key", "wrong")], 200),
        ([("Authorization", "Bearer wrong"), ("X-Api-Key", "own")], 401),
        ([("Authorization", "Bearer own"), ("Authorization", "Bearer own")], 401),
        ([("X-Api-Key", "own"), ("X-Api-Key", "own")], 401),
        ([("Authorization", "own")], 401),
        ([("Authorization", "Bearer OWN")], 401),
        ([("Cookie", "key=own")], 401),
    ],
)
async def test_a_key_comes_once_and_in_one_of_two_headers(headers: list[tuple[str, str]], status: int) -> None:
    async with house(ScriptedDoor(), keyring=ring()) as home:
        assert await status_of(home, "GET", "/v1/models", headers) == status  # type: ignore[arg-type]
        assert await status_of(home, "GET", "/v1/models?api_key=own&key=own", {}) == 401


async def test_a_key_for_some_models_sees_and_uses_those_alone(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"{}")

    door = ScriptedDoor([tmp_path / "w"], [model("a"), model("b", aliases=("bee",)), model("c")])
    async with worker(tmp_path / "w", script), house(door, keyring=ring(models=("a", "bee"))) as home:
        async with home.http.get("/v1/models", headers=bearer("own")) as response:
            assert [one["id"] for one in (await response.json())["data"]] == ["a", "b"]
        async with home.http.get("/v1/models", headers=bearer("inference")) as response:
            assert len((await response.json())["data"]) == 3
        messages = {}
        for name, status in (("a", 200), ("b", 200), ("bee", 200), ("c", 403), ("none", 403)):
            body = chat_body(model=name)
            async with home.http.post(CHAT, json=body, headers=bearer("own")) as response:
                assert response.status == status, name
                messages[name] = (await response.text()).replace(f"'{name}'", "NAME")
            assert await status_of(home, "GET", f"/v1/models/{name}", bearer("own")) == status
        assert messages["c"] == messages["none"]
        assert [ticket.model_id for ticket in door.tickets] == ["a", "b", "b"]


async def test_a_route_that_forgets_to_ask_gets_no_lease_of_another_model() -> None:
    door = ScriptedDoor([Path("w")], known=[model("a"), model("c")])
    keyed = behind_keys(door)
    with pytest.raises(ModelForbiddenError, match="without a key"):
        keyed.lease(Ticket("r", "a", "x"))
    HOLDER_OF_TASK.set(ring(models=("a",)).find("own"))
    with pytest.raises(ModelForbiddenError, match="may not use a model 'c'"):
        keyed.lease(Ticket("r", "c", "x"))
    async with keyed.lease(Ticket("r", "a", "x")):
        assert [ticket.model_id for ticket in door.tickets] == ["a"]


async def test_a_key_for_some_models_may_name_them_in_every_way_that_others_may() -> None:
    door = ScriptedDoor(known=[model("org/tiny"), model("c")])
    body = {"model": "org/tiny:latest"}
    async with house(door, keyring=ring(models=("org/tiny",))) as home:
        async with home.http.post("/api/show", json=body, headers=bearer("own")) as response:
            assert response.status == 200
        async with home.http.post("/api/show", json={"model": "c:latest"}, headers=bearer("own")) as response:
            assert response.status == 403
    HOLDER_OF_TASK.set(ring(models=("org/tiny",)).find("own"))
    assert split_target("/upstream/org/tiny/health", behind_keys(door)) == ("org/tiny", "/health")
    with pytest.raises(ModelForbiddenError):
        split_target("/upstream/c/health", behind_keys(door))


async def test_the_scheduler_hears_the_keys_name_class_and_share(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"{}")

    async with (
        worker(tmp_path / "w", script) as path,
        house(
            ScriptedDoor([path]),
            keyring=ring(priority=5, weight=2.0, per_user=True),
            client_header="X-User",
        ) as home,
    ):
        for headers in ({}, {"X-User": "ann"}, {"X-Swapd-Priority": "-4"}, {"X-Swapd-Priority": "9"}):
            async with home.http.post(CHAT, json=chat_body(), headers={**bearer("own"), **headers}) as response:
                assert response.status == 200
        async with home.http.post(CHAT, json=chat_body(), headers={**bearer("inference"), "X-User": "ann"}) as response:
            assert response.status == 200
        told = [(ticket.client, ticket.priority, ticket.weight) for ticket in home.door.tickets]
        assert told == [
            ("own", 5, 2.0),
            ("own/ann", 5, 2.0),
            ("own", -4, 2.0),
            ("own", 5, 2.0),
            ("inference", 0, 1.0),
        ]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CONSTRAINED: list[tuple[str, dict[str, object], str]] = [
    (CHAT, chat_body(grammar='root ::= "a"'), "grammar"),
    (CHAT, chat_body(json_schema=SCHEMA), "json_schema"),
    (CHAT, chat_body(guided_regex="(a+)+b"), "guided_regex"),
    (CHAT, chat_body(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}), "response_format"),
    (CHAT, chat_body(response_format={"type": "json_object", "schema": SCHEMA}), "response_format"),
    (CHAT, chat_body(tools=[TOOL], tool_choice="required"), "tool_choice"),
    (CHAT, chat_body(tools=[{**TOOL, "function": {"name": "f", "strict": True}}]), "tools[0].function.strict"),
    ("/v1/completions", {"model": "org/tiny", "prompt": "a", "grammar": 'root ::= "a"'}, "grammar"),
    (
        "/v1/responses",
        {
            "model": "org/tiny",
            "input": "a",
            "text": {"format": {**SCHEMA, "type": "json_schema", "name": "x", "schema": SCHEMA}},
        },
        "response_format",
    ),
    ("/api/chat", {"model": "org/tiny", "messages": [{"role": "user", "content": "a"}], "format": SCHEMA}, ""),
]


@pytest.mark.parametrize(("path", "body", "field"), CONSTRAINED)
async def test_a_key_may_be_without_grammars_and_schemas_in_every_dialect(
    path: str, body: dict[str, object], field: str
) -> None:
    door = ScriptedDoor(refusal=QueueFullError("got as far as the queue"))
    async with house(door, keyring=ring(structured=False)) as home:
        async with home.http.post(path, json=body, headers=bearer("own")) as response:
            assert response.status == 403
            error = (await response.json())["error"]
            assert "structured" in str(error)
            if field:
                assert (error["param"], error["code"]) == (field, "structured_not_allowed")
        assert door.tickets == []
        async with home.http.post(path, json=body, headers=bearer("inference")) as response:
            assert response.status == 429


async def test_free_answers_and_tools_that_may_be_called_need_no_permission_for_grammars() -> None:
    door = ScriptedDoor(refusal=QueueFullError("got as far as the queue"))
    async with house(door, keyring=ring(structured=False)) as home:
        for more in ({}, {"tools": [TOOL]}, {"response_format": {"type": "json_object"}}, {"grammar": ""}):
            async with home.http.post(CHAT, json=chat_body(**more), headers=bearer("own")) as response:
                assert response.status == 429, more


async def test_limits_are_429_with_the_time_to_come_again_and_for_that_key_alone(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"{}")

    gate = asyncio.Event()
    door = ScriptedDoor([tmp_path / "w"], gate=gate)
    async with worker(tmp_path / "w", script), house(door, keyring=ring(max_requests=1)) as home:
        first = asyncio.create_task(home.http.post(CHAT, json=chat_body(), headers=bearer("own")).__aenter__())
        await door.asked.wait()
        async with home.http.post(CHAT, json=chat_body(), headers=bearer("own")) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) == 10
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
        gate.set()
        assert (await first).status == 200
        for key in ("inference", "own"):
            async with home.http.post(CHAT, json=chat_body(), headers=bearer(key)) as response:
                assert response.status == 200


async def test_tokens_are_charged_when_a_request_comes_and_settled_by_its_count(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"{}")

    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path]), keyring=ring(tokens_per_minute=300)) as home,
    ):

        async def ask() -> tuple[int, str | None]:
            async with home.http.post(CHAT, json=chat_body(), headers=bearer("own")) as response:
                return response.status, response.headers.get("Retry-After")

        assert (await ask())[0] == 200
        status, retry_after = await ask()
        assert status == 429
        assert retry_after is not None
        assert 1 <= int(retry_after) <= 60
        counted = home.door.tickets[0].counted
        assert counted is not None
        counted(10)
        assert (await ask())[0] == 200


async def test_a_request_that_no_worker_took_costs_no_tokens() -> None:
    door = ScriptedDoor(refusal=QueueFullError("full", retry_after_s=3))
    async with house(door, keyring=ring(tokens_per_minute=300)) as home:
        for _ in range(5):
            async with home.http.post(CHAT, json=chat_body(), headers=bearer("own")) as response:
                assert (await response.json())["error"]["code"] == "queue_full"


async def test_a_key_reaches_no_worker_no_answer_and_no_metric(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = "sk-swapd-canary0123456789"
    heads: list[str] = []

    async def script(call: Call) -> None:
        heads.append(call.head + call.body.decode())
        await call.whole(b"{}")

    caplog.set_level("DEBUG")
    keys = Keyring(
        {digest(canary): ApiKey(name="canary", digest=digest(canary), scopes=tuple(Scope))},
        asyncio.get_running_loop().time,
        lambda: 0.0,
    )
    seen: list[str] = []
    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path]), keyring=keys) as home:
        for key in (canary, canary + "x"):
            for headers in (bearer(key), {"X-Api-Key": key}):
                for method, _, route in all_routes():
                    body = chat_body() if method == "POST" else None
                    async with home.http.request(method, route, json=body, headers=headers) as response:
                        seen.append(str(response.headers))
                        live = response.content_type == "text/event-stream"
                        seen.append("" if live else await response.text())
        seen += [await raw(home, head) for head in malformed(canary)]
        async with home.http.get("/metrics", headers=bearer(canary)) as response:
            seen.append(await response.text())
    out, err = capfd.readouterr()
    assert heads
    for text in (*heads, *seen, out, err, caplog.text):
        assert canary not in text
    assert any('"invalid_api_key"' in text for text in seen)


def malformed(canary: str) -> list[bytes]:
    """Requests that the parser refuses, with a key in what it would quote."""
    head = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {canary}"
    return [
        f"{head}\x01\r\n\r\n".encode(),
        f"{head}{'x' * 9000}\r\n\r\n".encode(),
        f"{head}\r\nbad header\r\n\r\n".encode(),
        f"GET /{canary} HTTP/9.9\r\nAuthorization: Bearer {canary}\r\n\r\n".encode(),
        f"Bearer {canary}\r\n\r\n".encode(),
    ]


async def raw(home: House, request: bytes) -> str:
    reader, writer = await asyncio.open_connection(home.host, home.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert re.match(rb"HTTP/1\.[01] 4\d\d ", answer), answer[:200]
    return answer.decode("latin-1")


async def test_without_keys_nobody_is_asked_for_one() -> None:
    async with house(ScriptedDoor()) as home:
        for method, pattern, path in all_routes():
            assert await status_of(home, method, path, {}) not in (401, 403), pattern


async def test_a_key_is_needed_on_a_unix_socket_too(tmp_path: Path) -> None:
    async with house(ScriptedDoor(), keyring=ring(), listen=f"unix:{tmp_path}/s") as home:
        assert await status_of(home, "GET", "/v1/models", {}) == 401
        assert await status_of(home, "GET", "/v1/models", bearer("own")) == 200
        assert await status_of(home, "GET", "/health", {}) == 200
