"""/upstream: streams and websockets through the front door, to a worker that is a real server on a real socket."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from support.front_door import House, ScriptedDoor, house, model

from swapd.errors import ModelNotLoadedError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MIB = 1024 * 1024


@asynccontextmanager
async def server(path: Path, handler: Handler, **door: object) -> AsyncIterator[House]:
    """A worker that handles every path, and a front door before it."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        async with house(ScriptedDoor([path], **door), max_body_bytes=64 * MIB) as home:  # type: ignore[arg-type]
            yield home
    finally:
        await runner.cleanup()


async def echo(request: web.Request) -> web.Response:
    body = await request.read()
    headers = {name.lower(): value for name, value in request.headers.items()}
    told = {"method": request.method, "target": request.raw_path, "headers": headers, "body": body.decode()}
    return web.json_response(told, status=418, headers={"X-Own": "1", "Set-Cookie": "a=b"})


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET", "OPTIONS"])
async def test_any_method_goes_through_with_path_query_and_body_as_they_came(tmp_path: Path, method: str) -> None:
    body = None if method in ("GET", "OPTIONS") else b"\x00hello"
    async with server(tmp_path / "w", echo) as home:
        url = "/upstream/org/tiny/a%2Fb/c?x=1&y=%20"
        async with home.http.request(method, url, data=body, headers={"X-Mine": "1"}) as response:
            told = await response.json()
            assert (response.status, response.headers["X-Own"]) == (418, "1")
            assert "Set-Cookie" not in response.headers
    assert (told["method"], told["target"]) == (method, "/a%2Fb/c?x=1&y=%20")
    assert told["body"] == ("" if body is None else body.decode())
    assert told["headers"]["x-mine"] == "1"


async def test_neither_credentials_nor_headers_of_the_connection_reach_the_worker(tmp_path: Path) -> None:
    sent = {
        "Authorization": "Bearer secret", "Cookie": "a=secret", "X-Api-Key": "secret", "Proxy-Authorization": "secret",
        "Connection": "keep-alive, X-Hop", "X-Hop": "secret", "TE": "trailers", "X-Request-Id": "mine-1",
    }  # fmt: skip
    async with server(tmp_path / "w", echo) as home:
        async with home.http.post("/upstream/small/", json={}, headers=sent) as response:
            headers = (await response.json())["headers"]
    assert "secret" not in str(headers)
    assert headers["x-request-id"] == "mine-1"
    assert {"te", "transfer-encoding"}.isdisjoint(headers)


async def test_a_worker_cannot_open_the_daemon_to_other_pages_nor_they_change_anything(tmp_path: Path) -> None:
    async def generous(_request: web.Request) -> web.Response:
        return web.Response(headers={"Access-Control-Allow-Origin": "*"})

    async with server(tmp_path / "w", generous) as home:
        evil = {"Origin": "https://evil.example"}
        async with home.http.get("/upstream/small/", headers=evil) as response:
            assert response.status == 200
            assert "Access-Control-Allow-Origin" not in response.headers
        async with home.http.post("/upstream/small/", data=b"x", headers=evil) as response:
            assert response.status == 403
        async with home.http.post("/upstream/small/", data=b"x", headers={"Origin": home.url}) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await home.http.ws_connect("/upstream/small/ws", headers=evil)
        assert refused.value.status == 403
        assert len(home.door.tickets) == 2


async def test_large_bodies_are_streamed_both_ways(tmp_path: Path) -> None:
    size = 20 * MIB

    async def swap(request: web.Request) -> web.StreamResponse:
        digest = hashlib.sha256()
        async for data in request.content.iter_any():
            digest.update(data)
        response = web.StreamResponse(headers={"X-Digest": digest.hexdigest(), "X-Length": str(request.content_length)})
        await response.prepare(request)
        for _ in range(size // MIB):
            await response.write(b"a" * MIB)
        await response.write_eof()
        return response

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield b"b" * MIB

    async with server(tmp_path / "w", swap) as home:
        for data, length in ((body(), "None"), (io.BytesIO(b"b" * size), str(size))):
            async with home.http.put("/upstream/small/files/x", data=data) as response:
                assert response.headers["X-Digest"] == hashlib.sha256(b"b" * size).hexdigest()
                assert response.headers["X-Length"] == length
                received = hashlib.sha256()
                async for part in response.content.iter_any():
                    received.update(part)
            assert received.hexdigest() == hashlib.sha256(b"a" * size).hexdigest()
    assert home.door.outcomes == ["finished"] * 2
    assert home.door.moves


async def test_a_worker_that_reads_nothing_holds_the_client_up(tmp_path: Path) -> None:
    go_on, sent = asyncio.Event(), 0

    async def slow(request: web.Request) -> web.Response:
        await go_on.wait()
        return web.Response(body=str(len(await request.read())).encode())

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(32):
            sent += 1
            yield b"b" * MIB

    async with server(tmp_path / "w", slow) as home:
        request = asyncio.create_task(home.http.put("/upstream/small/x", data=body()).__aenter__())
        await home.door.asked.wait()
        before, turns = -1, 0
        while turns < 2000:  # until nothing has moved for long
            turns = turns + 1 if sent == before else 0
            before = sent
            await asyncio.sleep(0)
        assert sent < 32
        go_on.set()
        async with asyncio.timeout(10):
            assert await (await request).read() == str(32 * MIB).encode()


async def test_bodies_beyond_the_limit_are_413_whether_they_say_so_or_not(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield b"b" * MIB

    async def read(request: web.Request) -> web.Response:
        return web.Response(body=str(len(await request.read())).encode())

    async with server(tmp_path / "w", read) as home:
        async with home.http.put("/upstream/small/x", data=io.BytesIO(b"b" * (64 * MIB + 1))) as response:
            assert response.status == 413
        assert home.door.tickets == []
        async with home.http.put("/upstream/small/x", data=body()) as response:
            assert response.status == 413


async def test_an_answer_that_breaks_cuts_the_connection(tmp_path: Path) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with server(tmp_path / "w", half) as home:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with home.http.get("/upstream/small/x") as response:
                await response.read()
        assert await home.door.left() == ["failed"]


async def test_a_client_that_leaves_frees_the_worker(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await response.write(b"first")
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return response

    async with server(tmp_path / "w", endless) as home:
        async with home.http.get("/upstream/small/x") as response:
            assert await response.content.readany() == b"first"
            response.close()
        async with asyncio.timeout(5):
            await cancelled.wait()
            assert await home.door.left() == ["cancelled"]


async def test_the_longest_name_that_is_a_model_is_meant_and_reading_loads_nothing(tmp_path: Path) -> None:
    known = [model("a"), model("a/b")]
    async with server(tmp_path / "w", echo, known=known) as home:
        for url, target, model_id in (
            ("/upstream/a/b/c", "/c", "a/b"),
            ("/upstream/a/c", "/c", "a"),
            ("/upstream/a%2Fb", "/", "a/b"),
        ):
            async with home.http.post(url) as response:
                assert (await response.json())["target"] == target
            assert home.door.tickets[-1].model_id == model_id
            assert home.door.tickets[-1].may_load
        for method in ("GET", "OPTIONS"):
            async with home.http.request(method, "/upstream/a/") as response:
                assert response.status == 418
            assert not home.door.tickets[-1].may_load
        async with home.http.post("/upstream/nobody/x") as response:
            assert response.status == 404
        home.door.refusal = ModelNotLoadedError("it is not loaded")
        async with home.http.get("/upstream/a/") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (409, "model_not_loaded")


async def echo_socket(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=("chat",))
    await socket.prepare(request)
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.data == "bye":
            await socket.close(code=4001, message=b"done")
        else:
            await socket.send_str(f"{request.raw_path} {message.data}")
    return socket


async def test_websockets_go_through_both_ways_and_close_with_the_workers_code(tmp_path: Path) -> None:
    async with server(tmp_path / "w", echo_socket) as home:
        async with home.http.ws_connect("/upstream/small/ws?x=1", protocols=("other", "chat")) as socket:
            assert socket.protocol == "chat"
            await socket.send_str("hello")
            assert await socket.receive_str() == "/ws?x=1 hello"
            await socket.send_bytes(b"\x00" * MIB)
            assert len(await socket.receive_bytes()) == MIB
            await socket.send_str("bye")
            closed = await socket.receive()
            assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 4001)
        assert await home.door.left()
        assert len(home.door.moves) >= 4


async def test_a_client_that_closes_its_websocket_frees_the_worker(tmp_path: Path) -> None:
    async with server(tmp_path / "w", echo_socket) as home:
        async with home.http.ws_connect("/upstream/small/ws") as socket:
            await socket.send_str("hello")
            await socket.receive_str()
        assert await home.door.left()


async def test_a_worker_without_websockets_is_an_error_and_one_that_is_lost_closes_them(tmp_path: Path) -> None:
    async def hangs(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        if request.path == "/none":
            raise web.HTTPNotFound
        await socket.prepare(request)
        await asyncio.Event().wait()
        return socket

    async with server(tmp_path / "w", hangs) as home:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await home.http.ws_connect("/upstream/small/none")
        assert refused.value.status == 502
        async with home.http.ws_connect("/upstream/small/ws") as socket:
            home.door.lost[-1].set_result("it was killed")
            async with asyncio.timeout(5):
                assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE


async def test_a_silent_websocket_is_closed_so_that_its_worker_may_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swapd.http.sockets.IDLE_S", 0.3)
    async with server(tmp_path / "w", echo_socket) as home:
        async with home.http.ws_connect("/upstream/small/ws") as socket:
            await socket.send_str("hello")
            await socket.receive_str()
            async with asyncio.timeout(5):
                closed = await socket.receive()
            assert closed.data == aiohttp.WSCloseCode.GOING_AWAY
        assert await home.door.left()
