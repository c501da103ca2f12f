"""Every route of a real daemon against everybody who may not use it, and every way to have it fetch: scorecard 22."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.checked_streams import clients
from support.mmproj_files import write_llava
from support.routes import all_routes
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml
from support.scorecard import figure
from support.seeing import write_text_model

from swapd.config.keys import ApiKey, Scope, digest, entry_text
from swapd.http.auth import SCOPES, Open

SECRET = "sk-swapd-{}-0123456789"
STRANGERS: dict[str, dict[str, str]] = {
    "none": {},
    "wrong": {"Authorization": "Bearer sk-swapd-wrong"},
    "empty": {"Authorization": "Bearer "},
    "another scheme": {"Authorization": f"Basic {SECRET.format('admin')}"},
    "wrong x-api-key": {"X-Api-Key": "sk-swapd-wrong"},
    "wrong beside a right one": {"Authorization": "Bearer sk-swapd-wrong", "X-Api-Key": SECRET.format("admin")},
}
EVIL_HOSTS = ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "2130706433")
EVIL_ORIGINS = ("http://evil.example", "null", "http://localhost:1")
FORMS = ("text/plain", "application/x-www-form-urlencoded")
MODEL = "  a: {path: a.model, memory_mib: 10}\n"


def key_of(scope: Scope) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRET.format(scope)}"}


def is_for(needed: Scope, scope: Scope) -> bool:
    return scope is needed or (needed, scope) == (Scope.METRICS, Scope.ADMIN)


def attempts(method: str, path: str, needed: Scope) -> list[tuple[str, dict[str, str], bytes | None, set[int]]]:
    """What is tried on a route: who, with which headers and body, and the statuses that deny it."""
    body = b'{"model": "a", "messages": [{"role": "user", "content": "tokens=1"}]}' if method == "POST" else None
    kind = {"Content-Type": "application/json"} if body else {}
    good = key_of(needed) | kind
    tries = [(f"key {name}", headers | kind, body, {401}) for name, headers in STRANGERS.items()]
    wrong = [scope for scope in Scope if not is_for(needed, scope)]
    tries += [(f"scope {scope}", key_of(scope) | kind, body, {403}) for scope in wrong]
    tries += [(f"host {host}", good | {"Host": host}, body, {403}) for host in EVIL_HOSTS]
    if method not in ("GET", "HEAD"):
        tries += [(f"origin {origin}", good | {"Origin": origin}, body, {403}) for origin in EVIL_ORIGINS]
    # Ollama's own examples send JSON as a form: what tells a page there is its origin.
    if method == "POST" and not path.startswith("/api/"):
        tries += [(f"form {form}", good | {"Content-Type": form}, body, {400, 404, 415, 501}) for form in FORMS]
    return tries


async def test_every_route_denies_strangers_wrong_keys_other_names_and_pages_of_elsewhere(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    named = [ApiKey(name=scope, digest=digest(SECRET.format(scope)), scopes=(scope,)) for scope in Scope]
    keys.write_text("".join(entry_text(key) for key in named))
    tried: Counter[str] = Counter()
    passed: list[tuple[object, ...]] = []
    yaml = scripted_yaml(tmp_path, MODEL, server="  keys: keys\n")
    async with running_daemon(tmp_path, yaml) as daemon, clients() as session:
        for method, pattern, path in all_routes("a"):
            needed = SCOPES[pattern]
            if isinstance(needed, Open):
                continue
            for what, headers, body, denials in attempts(method, path, needed):
                async with session.request(method, daemon.url + path, headers=headers, data=body) as answer:
                    tried[what.partition(" ")[0]] += 1
                    if answer.status not in denials:
                        passed.append((method, path, what, answer.status))
        async with session.get(f"{daemon.url}/swapd/v1/status", headers=key_of(Scope.METRICS)) as answer:
            status = await answer.json()
    figure(22, f"{tried.total()} requests by {dict(tried)}: {len(passed)} not denied")
    assert passed == [], Counter((what, status) for _, _, what, status in passed)
    assert status["requests"]["accepted"] == 0
    assert [model["loads"] for model in status["models"]] == [0]


def places(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each route and body that could make a server fetch this."""
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "video_url", "video_url": {"url": url}},
    ):
        yield "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}
    image = {"type": "input_image", "image_url": url}
    yield "/v1/responses", {"input": [{"role": "user", "content": [image]}]}
    file = {"type": "input_file", "file_url": url}
    yield "/v1/responses", {"input": [{"role": "user", "content": [file]}]}
    source = {"type": "image", "source": {"type": "url", "url": url}}
    yield "/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [source]}]}
    yield "/api/chat", {"messages": [{"role": "user", "content": "look", "images": [url]}]}
    yield "/api/generate", {"prompt": "look", "images": [url]}


def urls(port: int) -> list[str]:
    """A hundred ways to write where the canary listens."""
    hosts = [
        f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", f"[::ffff:127.0.0.1]:{port}", f"0:{port}",
        f"2130706433:{port}", f"0x7f000001:{port}", f"0177.0.0.1:{port}", f"127.1:{port}", f"user:pw@127.0.0.1:{port}",
        f"evil.example#@127.0.0.1:{port}", f"\u2460\u2461\u2466.0.0.1:{port}",
        f"127.0.0.1:{port}/data:image/png;base64,",
    ]  # fmt: skip
    schemes = ["http://", "https://", "HTTP://", "hTtP://", "http:", "//", " http://", "\thttp://"]
    return [scheme + host + "/x.png" for scheme, host in itertools.product(schemes, hosts)]


@asynccontextmanager
async def canary() -> AsyncIterator[tuple[int, list[str]]]:
    """A port, and who has ever connected to it."""
    hits: list[str] = []

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hits.append(str(writer.get_extra_info("peername")))
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        also = await asyncio.start_server(connected, "::1", port)
    except OSError:
        also = None
    try:
        yield port, hits
    finally:
        server.close()
        if also is not None:
            also.close()


@pytest.fixture
def seeing_yaml(tmp_path: Path) -> str:
    """A model that would take images."""
    write_text_model(tmp_path / "tiny.gguf")
    write_llava(tmp_path / "mmproj.gguf")
    model = "  seeing: {backend: llama_cpp, path: tiny.gguf, mmproj: mmproj.gguf, n_ctx: 512, n_threads: 1}\n"
    return scripted_yaml(tmp_path, model)


async def fetched(daemon: RunningDaemon, session: aiohttp.ClientSession, url: str) -> list[tuple[object, ...]]:
    """What was not refused as a bad request."""
    found: list[tuple[object, ...]] = []
    for path, body in places(url):
        async with session.post(daemon.url + path, json={"model": "seeing", **body}) as answer:
            if answer.status != 400:
                found.append((url, path, json.dumps(body)[:200], answer.status))
    return found


async def test_no_way_to_write_an_address_has_the_daemon_or_a_worker_fetch_it(tmp_path: Path, seeing_yaml: str) -> None:
    passed: list[tuple[object, ...]] = []
    async with (
        canary() as (port, hits),
        running_daemon(tmp_path, seeing_yaml) as daemon,
        clients() as session,
    ):
        for url in urls(port):
            passed += await fetched(daemon, session, url)
        assert [model["loads"] for model in (await daemon.status())["models"]] == [0]
        by_daemon = len(hits)
        # The canary does sing.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        assert len(hits) == by_daemon + 1
    tried = len(urls(1)) * len(list(places("")))
    figure(22, f"{tried} requests with {len(urls(1))} forms of a URL: {len(passed)} not refused, {by_daemon} fetched")
    assert passed == []
    assert by_daemon == 0
