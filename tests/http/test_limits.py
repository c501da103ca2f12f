import asyncio

import pytest
from aiohttp import web
from support.front_door import book_in_memory

from swapd.errors import QueueFullError
from swapd.http import limits
from swapd.http.errors import framing
from swapd.http.listen import serve
from swapd.observe.metrics import Metrics


def test_bodies_in_flight_share_one_bound() -> None:
    budget = limits.BodyBudget()
    with budget.hold(100) as first, budget.hold(100) as second:
        first.hold(90)
        first.hold(80)
        assert budget.held_bytes == 90
        second.hold(10)
        with pytest.raises(QueueFullError, match=r"take 100 of 100 bytes \(server.max_bodies\)") as caught:
            second.hold(11)
        assert caught.value.retry_after_s == limits.BODIES_RETRY_S
    assert budget.held_bytes == 0


@pytest.mark.parametrize("offered", ["", "a b", "x" * 65, "a\r\nb", "é", 'a"b'])
def test_a_request_id_that_is_long_or_harmful_is_replaced(offered: str) -> None:
    chosen = limits.choose_request_id(offered, set())
    assert chosen.startswith("req-")


def test_a_request_id_in_use_gets_a_suffix() -> None:
    assert limits.choose_request_id("abc", {"other"}) == "abc"
    assert limits.choose_request_id("abc", {"abc"}).startswith("abc.")


async def test_a_slow_body_is_given_up_at_its_deadline() -> None:
    async def handle(request: web.Request) -> web.Response:
        with limits.BodyBudget().hold(100) as share:
            await limits.read_body(request, share, max_bytes=100, deadline_s=0.05)
        return web.Response()

    with book_in_memory() as book:
        app = web.Application(middlewares=[framing(Metrics(), book)])
        app.router.add_post("/", handle)
        async with serve(app, ["127.0.0.1:0"], shutdown_timeout_s=0.1) as (address,):
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nhalf")
            async with asyncio.timeout(5):
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408")
            writer.close()
