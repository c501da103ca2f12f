import socket
import stat
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from swapd.errors import StartupError
from swapd.http.listen import serve


def hello() -> web.Application:
    async def handle(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", handle)
    return app


async def get(path: Path) -> str:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get("http://x/") as response,
    ):
        return await response.text()


async def test_several_addresses_are_served_at_once(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with serve(hello(), ["127.0.0.1:0", f"unix:{path}"]) as addresses:
        assert addresses[1] == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert await get(path) == "hello"
        async with aiohttp.ClientSession() as http, http.get(f"http://{addresses[0]}/") as response:
            assert await response.text() == "hello"
    assert not path.exists()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with serve(hello(), [f"unix:{path}"]):
        assert await get(path) == "hello"


async def test_a_socket_in_use_or_a_file_in_its_place_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with serve(hello(), [f"unix:{path}"]):
        with pytest.raises(StartupError, match=r"cannot listen on unix:.*in use"):
            async with serve(hello(), [f"unix:{path}"]):
                pass
        assert await get(path) == "hello"
    path.write_text("mine")
    with pytest.raises(StartupError, match="cannot listen on"):
        async with serve(hello(), [f"unix:{path}"]):
            pass
    assert path.read_text() == "mine"


async def test_an_occupied_port_is_one_clear_line() -> None:
    async with serve(hello(), ["127.0.0.1:0"]) as (address,):
        with pytest.raises(StartupError, match=rf"^cannot listen on {address}: Address already in use$"):
            async with serve(hello(), [address]):
                pass


async def test_a_passed_socket_replaces_the_list() -> None:
    passed = socket.create_server(("127.0.0.1", 0))
    async with (
        serve(hello(), ["256.0.0.1:1"], sockets=[passed]) as (address,),
        aiohttp.ClientSession() as http,
        http.get(f"http://{address}/") as response,
    ):
        assert await response.text() == "hello"
