"""What the frame around a request makes of an end that comes from outside."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
from support.front_door import book_in_memory

from swapd.http.errors import framing
from swapd.http.listen import serve
from swapd.http.record import RECORD
from swapd.observe.metrics import Metrics


@pytest.mark.parametrize(
    ("whole", "broken", "code"), [(None, None, 499), (200, None, 200), (200, 502, 502), (None, 502, 499)]
)
async def test_a_client_that_leaves_is_499_unless_the_answer_was_out_by_then(
    whole: int | None, broken: int | None, code: int
) -> None:
    async def handle(request: web.Request) -> web.Response:
        request[RECORD].whole, request[RECORD].broken = whole, broken
        raise asyncio.CancelledError

    metrics = Metrics()
    with book_in_memory(metrics) as book:
        app = web.Application(middlewares=[framing(metrics, book)])
        app.router.add_post("/", handle)
        async with serve(app, ["127.0.0.1:0"], shutdown_timeout_s=0.1) as (address,), aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientError):
                await http.post(f"http://{address}/")
    assert f'swapd_requests_total{{code="{code}",endpoint="/",model=""}} 1.0' in metrics.render().decode()
