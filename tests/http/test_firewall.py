"""Names, web pages, framing and slowness: what never gets as far as a route."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from support.front_door import CHAT, Call, House, ScriptedDoor, chat_body, house, worker

from swapd.http import listen
from swapd.http.connection import MAX_HEADER_BYTES, MAX_HEADERS

UNLOAD = "/swapd/v1/models/org/tiny/unload"


async def raw(home: House, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Everything the daemon answers to these bytes until it closes."""
    reader, writer = await asyncio.open_connection(home.host, home.port)
    answer = b""
    # The daemon may close while there is still something to send.
    with suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(5):
            answer = await reader.read()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return answer


def request(method: str, path: str, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", *headers, "Connection: close", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("localhost", 200),
        ("LOCALHOST:8686", 200),
        ("localhost.", 200),
        ("chat.localhost:3000", 200),
        ("127.0.0.1:8686", 200),
        ("192.168.1.20:8686", 200),
        ("[::1]:8686", 200),
        ("gpu.example.org", 200),
        ("GPU.example.org:443", 200),
        (socket.gethostname(), 200),
        ("evil.example", 403),
        ("gpu.example.org.evil.example", 403),
        ("xgpu.example.org", 403),
        ("localhost.evil.example", 403),
        ("evillocalhost", 403),
        ("127.0.0.1.evil.example", 403),
        ("2130706433", 403),
        ("0x7f.1", 403),
        ("", 400),
        ("localhost:http", 400),
        ("localhost:1:2", 400),
        ("user@localhost", 400),
        ("localhost/", 400),
        ("loc alhost", 400),
        ("[localhost]", 400),
        ("localhost, evil.example", 400),
        ("l\u00f6calhost", 400),
    ],
)
async def test_a_request_calls_the_server_by_a_name_it_has(host: str, wanted: int) -> None:
    async with house(ScriptedDoor(), hosts=("gpu.example.org",)) as home:
        for path in ("/health", "/metrics"):
            answer = await raw(home, request("GET", path, f"Host: {host}"))
            assert status(answer) == wanted, answer
        answer = await raw(home, request("POST", UNLOAD, f"Host: {host}"))
        assert status(answer) == wanted
        assert len(home.door.calls) == (wanted == 200)


async def test_a_request_has_exactly_one_host_unless_it_is_of_http_1_0() -> None:
    async with house(ScriptedDoor()) as home:
        assert status(await raw(home, request("GET", "/health"))) == 400
        assert status(await raw(home, request("GET", "/health", version="1.0"))) == 200
        assert status(await raw(home, request("GET", "/health", "Host: evil.example", version="1.0"))) == 403
        for second in ("localhost", "evil.example"):
            answer = await raw(home, request("GET", "/health", "Host: localhost", f"Host: {second}"))
            assert status(answer) == 400
        answer = await raw(home, request("POST", "http://localhost" + UNLOAD, "Host: evil.example"))
        assert status(answer) == 403
        assert home.door.calls == []


async def test_the_name_on_a_unix_socket_has_no_meaning(tmp_path: Path) -> None:
    async with house(ScriptedDoor(), listen=f"unix:{tmp_path}/s") as home:
        async with home.http.get("/health") as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost", "https://127.0.0.1", "file://", "app://x", "x", "http://["],
)
async def test_a_page_of_elsewhere_can_change_nothing_and_ask_nothing(origin: str) -> None:
    async with house(ScriptedDoor()) as home:
        for path in (UNLOAD, CHAT, "/swapd/v1/devices/CUDA0/pause"):
            for body, kind in ((b"", None), (b"{}", "application/json"), (b"{}", "text/plain")):
                headers = [f"Host: {home.host}:{home.port}", f"Origin: {origin}"]
                headers += [f"Content-Type: {kind}"] if kind else []
                answer = await raw(home, request("POST", path, *headers, body=body))
                assert status(answer) == 403, (path, kind)
                assert b"access-control" not in answer.lower()
        answer = await raw(home, request("GET", "/v1/models", "Host: localhost", f"Origin: {origin}"))
        assert status(answer) == 200
        assert b"access-control" not in answer.lower()
        preflight = ("Host: localhost", f"Origin: {origin}", "Access-Control-Request-Method: POST")
        answer = await raw(home, request("OPTIONS", CHAT, *preflight))
        assert status(answer) == 405
        assert b"access-control" not in answer.lower()
        assert home.door.calls == []
        assert home.door.tickets == []


async def test_a_page_of_the_servers_own_may_ask() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.post(UNLOAD, headers={"Origin": home.url}) as response:
            assert response.status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_types_that_a_page_can_send_unasked_are_refused_without_an_origin_too(kind: str) -> None:
    async with house(ScriptedDoor()) as home:
        for path in (UNLOAD, CHAT):
            headers = {"Content-Type": kind}
            async with home.http.post(path, data=json.dumps(chat_body()).encode(), headers=headers) as response:
                assert response.status == 400
        assert home.door.calls == []
        assert home.door.tickets == []


async def test_listed_origins_get_the_headers_of_cors_on_answers_streams_and_errors(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(b"data: {}\n\ndata: [DONE]\n\n")
        await call.end()

    origin = "https://chat.example.org"
    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path]), cors_origins=(origin,)) as home,
    ):
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        async with home.http.options(CHAT, headers=asked) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Headers"] == "authorization"
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
            assert response.headers["Access-Control-Allow-Origin"] == origin
        for body, wanted in ((chat_body(stream=True), 200), ({}, 400)):
            async with home.http.post(CHAT, json=body, headers={"Origin": origin}) as response:
                assert response.status == wanted
                assert response.headers["Access-Control-Allow-Origin"] == origin
                assert response.headers["Vary"] == "Origin"
                assert "Access-Control-Allow-Credentials" not in response.headers
        async with home.http.post(CHAT, json={}, headers={"Origin": "https://evil.example"}) as response:
            assert response.status == 403
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_every_origin_may_be_allowed() -> None:
    async with house(ScriptedDoor(), cors_origins=("*",)) as home:
        async with home.http.post(UNLOAD, headers={"Origin": "http://x.example"}) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == "http://x.example"


CHUNKED = "Transfer-Encoding: chunked"
MALFORMED = {
    "two lengths": ("Content-Length: 2\r\nContent-Length: 3", b"{}x"),
    "a length and chunks": (f"Content-Length: 5\r\n{CHUNKED}", b"0\r\n\r\n"),
    "chunks twice": (f"{CHUNKED}, chunked", b"0\r\n\r\n"),
    "unknown coding": ("Transfer-Encoding: xchunked", b"{}"),
    "negative length": ("Content-Length: -1", b"{}"),
    "signed length": ("Content-Length: +2", b"{}"),
    "length of words": ("Content-Length: 0x2", b"{}"),
    "a blank before the colon": ("Content-Length : 2", b"{}"),
    "a folded header": ("X-A: b\r\n c: d\r\nContent-Length: 2", b"{}"),
    "a header without a name": (": x\r\nContent-Length: 2", b"{}"),
    "a null byte": ("X-A: \x00\r\nContent-Length: 2", b"{}"),
    "a bare line feed": ("X-A: b\nX-B: c\r\rContent-Length: 2", b"{}"),
    "a chunk size of words": (CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"),
    "a negative chunk": (CHUNKED, b"-1\r\n{}\r\n0\r\n\r\n"),
    "a huge chunk size": (CHUNKED, b"f" * 40 + b"\r\n{}"),
    "too many headers": ("\r\n".join(f"X-{n}: 1" for n in range(MAX_HEADERS + 1)), b""),
    "too large a header": ("X-A: " + "x" * (MAX_HEADER_BYTES + 1), b""),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_framing_is_a_400_and_no_second_request(name: str) -> None:
    headers, body = MALFORMED[name]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n\r\n"
    smuggled = request("POST", UNLOAD, "Host: localhost")
    async with house(ScriptedDoor()) as home:
        answer = await raw(home, head.encode("latin-1") + body + smuggled)
        assert status(answer) == 400, answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        assert home.door.calls == []


@pytest.mark.parametrize(
    "line",
    [
        "GET /health HTTP/1.x",
        "/health",
        "GET /hea\x00lth HTTP/1.1",
        "G@T /health HTTP/1.1",
        f"GET /{'x' * 9000} HTTP/1.1",
        "\x16\x03\x01\x02",
    ],
)
async def test_a_malformed_request_line_is_a_400(line: str) -> None:
    async with house(ScriptedDoor()) as home:
        answer = await raw(home, f"{line}\r\nHost: localhost\r\n\r\n".encode("latin-1"))
        assert status(answer) == 400, answer


async def test_paths_that_only_look_like_a_route_are_none() -> None:
    async with house(ScriptedDoor()) as home:
        for path in ("//metrics", "/metrics/", "/METRICS", "/metrics%00", "/./metrics/x", "/swapd/v1/status/.."):
            assert status(await raw(home, request("GET", path, "Host: localhost"))) == 404, path


async def test_a_connection_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "KEEPALIVE_S", 0.2)
    async with house(ScriptedDoor()) as home, asyncio.timeout(5):
        assert await raw(home, b"") == b""
        assert status(await raw(home, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"")) == 200
