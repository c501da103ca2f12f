"""One exchange with a worker: real sockets, scripted bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.front_door import Call, Script, tcp_worker, worker
from support.tls_front import Certified, certified

from backends.address import Tls
from swapd.http.upstream import MAX_HEAD_BYTES, MAX_UNREAD_BYTES, Upstream, UpstreamError, post
from swapd.pool.lease import Address, UnixAddress, UrlAddress


@asynccontextmanager
async def asking(tmp_path: Path, script: Script, body: bytes = b"{}") -> AsyncIterator[Upstream]:
    async with worker(tmp_path / "w", script) as path, asyncio.timeout(10):
        async with post(UnixAddress(path), "/x", {"X-Request-Id": "r1"}, body, connect_s=5.0) as upstream:
            yield upstream


def saying(*parts: bytes) -> Script:
    """Write the parts and close."""

    async def script(call: Call) -> None:
        for part in parts:
            call.writer.write(part)
            await call.writer.drain()
        call.die()

    return script


async def read_all(upstream: Upstream) -> bytes:
    parts = []
    while data := await upstream.read():
        parts.append(data)
    return b"".join(parts)


async def test_the_request_arrives_whole_and_asks_for_the_connection_to_be_closed(tmp_path: Path) -> None:
    heads = []
    body = b"b" * 3_000_000

    async def script(call: Call) -> None:
        heads.append(call.head)
        await call.whole(b"%d" % len(call.body))

    async with asking(tmp_path, script, body) as upstream:
        assert await read_all(upstream) == b"3000000"
    assert heads[0].startswith("POST /x HTTP/1.1\r\nHost: worker\r\nX-Request-Id: r1\r\n")
    assert "Connection: close" in heads[0]


async def test_status_type_and_headers_are_read_in_any_case(tmp_path: Path) -> None:
    head = b"HTTP/1.1 429 Slow\r\nCONTENT-TYPE: Text/Event-Stream; charset=utf-8\r\nretry-after: 7\r\n"
    async with asking(tmp_path, saying(head + b"Content-Length: 0\r\n\r\n")) as upstream:
        assert upstream.status == 429
        assert upstream.content_type == "text/event-stream"
        assert upstream.headers["retry-after"] == "7"
        assert upstream.ended


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_a_chunked_answer_is_the_same_however_it_is_cut(tmp_path: Path, size: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\n\r\n"
    parts = [answer[at : at + size] for at in range(0, len(answer), size)]
    async with asking(tmp_path, saying(*parts)) as upstream:
        assert upstream.has_length
        assert await read_all(upstream) == b"abcdefgh"
        assert upstream.ended


async def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    async with asking(tmp_path, saying(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def")) as upstream:
        assert not upstream.has_length
        assert await read_all(upstream) == b"abcdef"


@pytest.mark.parametrize(
    ("answer", "arrived"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", b"abc"),
    ],
)
async def test_what_came_of_a_broken_answer_is_read_and_then_it_is_an_error(
    tmp_path: Path, answer: bytes, arrived: bytes
) -> None:
    async with asking(tmp_path, saying(answer)) as upstream:
        assert await upstream.read() == arrived
        assert not upstream.ended
        for _ in range(2):
            with pytest.raises(UpstreamError):
                await upstream.read()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 20", "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES, "headers are larger"),
    ],
)
async def test_an_answer_without_a_sound_head_is_an_error(tmp_path: Path, answer: bytes, why: str) -> None:
    with pytest.raises(UpstreamError, match=why):
        async with asking(tmp_path, saying(answer)):
            pytest.fail("there is no answer")


async def test_what_follows_a_whole_answer_is_no_part_of_it(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\nx"
    async with asking(tmp_path, saying(answer)) as upstream:
        assert await read_all(upstream) == b"abc"
        assert upstream.status == 200


async def test_a_worker_that_is_not_read_is_held_back(tmp_path: Path) -> None:
    part, sent = b"x" * 65_536, 0
    stuck = asyncio.Event()

    async def script(call: Call) -> None:
        nonlocal sent
        await call.start()
        for _ in range(1000):
            try:
                async with asyncio.timeout(0.2):
                    await call.chunk(part)
            except TimeoutError:
                stuck.set()
                await call.writer.drain()
            sent += len(part)
        await call.end()

    async with asking(tmp_path, script) as upstream:
        await stuck.wait()
        # What is unread, one read of asyncio's, both sides' socket buffers, the writer's own.
        assert sent < MAX_UNREAD_BYTES + 2_000_000
        assert len(await read_all(upstream)) == 1000 * len(part)


async def test_leaving_cuts_the_connection(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start()
        await call.closed()
        closed.set()

    async with worker(tmp_path / "w", script) as path, asyncio.timeout(10):
        async with post(UnixAddress(path), "/x", {}, b"{}", connect_s=5.0) as upstream:
            assert upstream.status == 200
        await closed.wait()


async def test_a_socket_that_nobody_serves_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="no connection"):
        async with post(UnixAddress(tmp_path / "none"), "/x", {}, b"", connect_s=5.0):
            pytest.fail("there is no worker")


async def echo_head(call: Call) -> None:
    await call.whole(call.head.encode())


async def head_seen_at(address: Address, path: str = "/v1/x") -> list[str]:
    async with asyncio.timeout(10), post(address, path, {"X-Request-Id": "r1"}, b"{}", connect_s=5.0) as upstream:
        return (await read_all(upstream)).decode().splitlines()


async def test_a_worker_on_a_port_is_asked_by_its_name() -> None:
    async with tcp_worker(echo_head) as address:
        request, *headers = await head_seen_at(address)
    assert request == "POST /v1/x HTTP/1.1"
    assert headers[0] == f"Host: 127.0.0.1:{address.port}"


async def test_a_server_elsewhere_gets_its_base_path_and_its_headers_in_place_of_equal_ones() -> None:
    async with tcp_worker(echo_head) as address:
        url = UrlAddress(
            address.host, address.port, base_path="/api", headers={"Authorization": "Bearer k", "x-request-id": "own"}
        )
        request, *headers = await head_seen_at(url)
    assert request == "POST /api/v1/x HTTP/1.1"
    assert "Authorization: Bearer k" in headers
    assert [line for line in headers if line.lower().startswith("x-request-id")] == ["x-request-id: own"]


def test_an_address_never_shows_its_headers() -> None:
    url = UrlAddress("::1", 443, Tls(), "/v1", {"Authorization": "Bearer canary"})
    assert str(url) == "https://[::1]/v1"
    assert "canary" not in repr(url)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return certified(tmp_path_factory.mktemp("tls"))


async def test_tls_reaches_who_is_vouched_for_by_the_given_file(identity: Certified) -> None:
    async with tcp_worker(echo_head, tls=identity.server) as address:
        url = UrlAddress("localhost", address.port, Tls(ca_file=identity.ca_file))
        assert (await head_seen_at(url))[1] == f"Host: localhost:{address.port}"
        unchecked = UrlAddress("127.0.0.1", address.port, Tls(verify=False))
        assert (await head_seen_at(unchecked))[1] == f"Host: 127.0.0.1:{address.port}"


async def test_a_large_answer_over_tls_is_held_back_and_whole(identity: Certified) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"x" * 5_000_000)

    async with tcp_worker(script, tls=identity.server) as address:
        url = UrlAddress("localhost", address.port, Tls(ca_file=identity.ca_file))
        async with asyncio.timeout(20), post(url, "/x", {}, b"{}", connect_s=5.0) as upstream:
            assert len(await read_all(upstream)) == 5_000_000


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_who_is_not_vouched_for_gets_nothing(identity: Certified, host: str, tmp_path: Path) -> None:
    trust = Tls() if host == "localhost" else Tls(ca_file=identity.ca_file)
    seen: list[str] = []

    async def script(call: Call) -> None:
        seen.append(call.head)

    async with tcp_worker(script, tls=identity.server) as address:
        with pytest.raises(UpstreamError, match="certificate"):
            await head_seen_at(UrlAddress(host, address.port, trust, headers={"Authorization": "Bearer canary"}))
        with pytest.raises(UpstreamError, match="no connection"):
            await head_seen_at(UrlAddress("localhost", address.port, Tls(ca_file=tmp_path / "missing.pem")))
    assert not seen
