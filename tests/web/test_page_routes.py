"""The page's files over HTTP: who gets them, and what a browser may do with them."""

from __future__ import annotations

import re

import pytest
from support.front_door import ScriptedDoor, house

from swapd.web import PAGE, assets

BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


async def test_browsers_get_the_page_and_programs_ollamas_words_at_the_same_place() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/", headers=BROWSER) as response:
            assert (response.status, response.content_type) == (200, "text/html")
            assert await response.read() == assets()[PAGE].body
            assert "Accept" in response.headers["Vary"]
        for accept in ("*/*", "application/json"):
            async with home.http.get("/", headers={"Accept": accept}) as response:
                assert await response.text() == "Ollama is running"


async def test_nothing_from_elsewhere_and_nothing_inline_may_run_in_the_page() -> None:
    async with house(ScriptedDoor()) as home:
        for path in ("/", *(f"/ui/{name}" for name in assets())):
            async with home.http.get(path, headers=BROWSER) as response:
                assert response.status == 200, path
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
        async with home.http.get("/ui/../auth.py") as response:
            assert response.status == 404
        async with home.http.get("/ui/nothing.js") as response:
            assert response.status == 404


async def test_a_file_that_is_known_is_not_sent_again() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.get("/ui/main.js") as response:
            tag = response.headers["ETag"]
            assert response.content_type == "text/javascript"
        async with home.http.get("/ui/main.js", headers={"If-None-Match": tag}) as response:
            assert (response.status, await response.read()) == (304, b"")


@pytest.mark.parametrize("name", sorted(assets()))
def test_no_file_reads_html_from_a_text_or_asks_another_server(name: str) -> None:
    text = assets()[name].body.decode()
    banned = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "localStorage")
    assert not [word for word in banned if word in text]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    if name.endswith(".html"):
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", text)


def test_every_file_that_one_names_is_there() -> None:
    for asset in assets().values():
        for name in re.findall(r"""(?:/ui/|from "\./)([\w.-]+)""", asset.body.decode()):
            assert name in assets(), name
