"""Secrets of every kind go in wherever they may, and come out nowhere: scorecard 23."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.checked_streams import clients
from support.gguf_files import write_model
from support.routes import all_routes
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml
from support.scorecard import figure

from swapd.config.keys import ApiKey, Scope, digest, entry_text


def secret(name: str) -> str:
    return f"canary{name}x7Qz93"


KEY, WRONG_KEY = f"sk-swapd-{secret('key')}", f"sk-swapd-{secret('wrongkey')}"
PROMPT, QUERY, COOKIE, MEDIUM = secret("prompt"), secret("query"), secret("cookie"), secret("medium")
REMOTE_KEY, VARIABLE, SETTING = secret("remotekey"), secret("variable"), secret("setting")
IMAGE = base64.b64encode(f"\x89PNG\r\n\x1a\n{MEDIUM}".encode("latin-1")).decode()
SECRETS = {
    "API key": KEY,
    "wrong key": WRONG_KEY,
    "prompt": PROMPT,
    "query": QUERY,
    "cookie": COOKIE,
    "medium": MEDIUM,
    "encoded medium": IMAGE[12:],
    "remote key": REMOTE_KEY,
    "variable": VARIABLE,
    "setting": SETTING,
}
GIVEN = {("setting", "environment of its worker")}
"""What is where it belongs."""
ENVIRONMENT = {
    "HF_TOKEN": VARIABLE,
    "OPENAI_API_KEY": VARIABLE,
    "AWS_SECRET_ACCESS_KEY": VARIABLE,
    "FAR_KEY": REMOTE_KEY,
}
VARIABLE_OF_SETTING = "SCRIPT_TOKEN"
MODELS = ("real", "scripted", "broken", "far", "failing", "nobody")
"""One that answers, one whose worker may die, a file that is none, two elsewhere, and one that is not there."""


@dataclass
class Seen:
    """Everything that came out, by where."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    statuses: set[int] = field(default_factory=set)

    def add(self, where: str, text: str) -> None:
        self.texts.setdefault(where, []).append(text)

    def found(self) -> list[tuple[str, str, str]]:
        """Which secret is where, and around what."""
        hits = []
        for where, texts in self.texts.items():
            for text in texts:
                for name, value in SECRETS.items():
                    at = text.find(value)
                    if at >= 0 and (name, where) not in GIVEN:
                        hits.append((name, where, text[max(0, at - 100) : at + 100]))
        return hits


def chats(words: str) -> list[tuple[str, dict[str, Any]]]:
    """One body in every dialect, and what is wrong in each of many ways."""
    said = [{"role": "system", "content": PROMPT}, {"role": "user", "content": f"{PROMPT} {words}"}]
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}
    source = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}}
    far_image = {"type": "image_url", "image_url": {"url": f"http://{secret('medium')}.example/x.png"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": PROMPT}}}
    short = {"max_tokens": 4}
    return [
        ("/v1/chat/completions", {"messages": said, **short}),
        ("/v1/chat/completions", {"messages": said, "stream": True, **short}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [image]}], **short}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [far_image]}], **short}),
        ("/v1/chat/completions", {"messages": said, "tools": [tool], **short}),
        ("/v1/chat/completions", {"messages": said, "temperature": PROMPT}),
        ("/v1/chat/completions", {"messages": PROMPT}),
        ("/v1/chat/completions", {"messages": [PROMPT]}),
        ("/v1/chat/completions", {"messages": [{"role": PROMPT, "content": PROMPT}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": f"{PROMPT} " * 20_000}]}),
        ("/v1/chat/completions", {"messages": said, "response_format": {"type": "json_schema", "json_schema": PROMPT}}),
        ("/v1/chat/completions", {"messages": said, "grammar": f'root ::= "{PROMPT}', **short}),
        ("/v1/chat/completions", {"messages": said, "stop": [PROMPT] * 100, **short}),
        ("/v1/completions", {"prompt": PROMPT, **short}),
        ("/v1/completions", {"prompt": PROMPT, "stream": True, **short}),
        ("/v1/completions", {"prompt": {"text": PROMPT}}),
        ("/infill", {"input_prefix": PROMPT, "input_suffix": PROMPT, **short}),
        ("/v1/embeddings", {"input": PROMPT}),
        ("/v1/rerank", {"query": PROMPT, "documents": [PROMPT]}),
        ("/tokenize", {"content": PROMPT}),
        ("/apply-template", {"messages": said}),
        ("/v1/responses", {"input": PROMPT, "instructions": PROMPT, "max_output_tokens": 16, "store": False}),
        ("/v1/responses", {"input": [{"role": "user", "content": PROMPT}], "stream": True, "max_output_tokens": 16}),
        ("/v1/responses", {"input": PROMPT, "previous_response_id": "resp_nowhere"}),
        ("/v1/messages", {"messages": said[1:], "system": PROMPT, "max_tokens": 4}),
        ("/v1/messages", {"messages": said[1:], "max_tokens": 4, "stream": True}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [source]}], "max_tokens": 4}),
        ("/v1/messages", {"messages": said[1:], "max_tokens": PROMPT}),
        ("/v1/messages/count_tokens", {"messages": said[1:]}),
        ("/api/chat", {"messages": said, "options": {"num_predict": 4}}),
        ("/api/chat", {"messages": [{"role": "user", "content": PROMPT, "images": [IMAGE]}], "stream": False}),
        ("/api/generate", {"prompt": PROMPT, "system": PROMPT, "options": {"num_predict": 4}}),
        ("/api/generate", {"prompt": PROMPT, "options": {"temperature": PROMPT}}),
        ("/api/embed", {"input": [PROMPT]}),
        ("/v1/audio/speech", {"input": PROMPT, "voice": "x"}),
        ("/v1/images/generations", {"prompt": PROMPT}),
    ]


@asynccontextmanager
async def elsewhere() -> AsyncIterator[tuple[int, list[str]]]:
    """A server that repeats in its errors and its answers whatever it was sent but the key; its port, what it heard."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            heard.append(head)
            failing = "/failing" in head.split("\r\n")[0]
            error = {"error": {"message": "the far server is out of order", "type": "server_error"}}
            answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "far"}}]}
            body = json.dumps(error if failing else answer).encode()
            status = "500 X" if failing else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n".encode())
            writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()


@pytest.fixture
def yaml(tmp_path: Path) -> str:
    write_model(tmp_path / "tiny.gguf")
    (tmp_path / "keys").write_text(entry_text(ApiKey(name="canary", digest=digest(KEY), scopes=tuple(Scope))))
    far = "backend: remote, api_key_env: FAR_KEY, proxy: 'http://127.0.0.1:PORT"
    return scripted_yaml(
        tmp_path,
        "  real: {backend: llama_cpp, path: tiny.gguf, n_ctx: 512, n_threads: 1, use_extra_bufts: false}\n"
        f"  scripted: {{path: a.model, memory_mib: 10, env: {{{VARIABLE_OF_SETTING}: {SETTING}}}}}\n"
        "  broken: {backend: llama_cpp, path: b.model}\n"
        f"  far: {{{far}'}}\n"
        f"  failing: {{{far}/failing'}}\n",
        server="  keys: keys\n  log_level: debug\n",
    )


async def ask(
    daemon: RunningDaemon,
    session: aiohttp.ClientSession,
    seen: Seen,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: object = None,
) -> None:
    url = f"{daemon.url}{path}?token={QUERY}"
    async with session.request(method, url, json=body, headers={"Cookie": f"session={COOKIE}", **headers}) as answer:
        seen.statuses.add(answer.status)
        seen.add("headers of answers", str(answer.headers))
        if answer.content_type == "text/event-stream" and method == "GET":
            return  # without an end
        text = await answer.text(errors="replace")
        # An answer may repeat what was asked, as that of `/tokenize` does; an error has no reason to.
        if answer.status >= 400:
            seen.add("errors", text)
        for line in text.split("\n"):
            with suppress(ValueError):
                seen.add("errors in answers", json.dumps(list(errors_in(json.loads(line.removeprefix("data: "))))))


def errors_in(document: object) -> Iterator[object]:
    """Whatever is called an error anywhere in it."""
    if isinstance(document, dict):
        yield document.get("error")
        for value in document.values():
            yield from errors_in(value)


async def look_inside(daemon: RunningDaemon, session: aiohttp.ClientSession, seen: Seen) -> None:
    """What the daemon shows of itself to who may see it."""
    headers = {"Authorization": f"Bearer {KEY}"}
    paths = ["status", "usage?by=key", "usage?by=model", "activity?limit=1000", "profiles"]
    for path in (
        [f"/swapd/v1/{path}" for path in paths] + [f"/swapd/v1/logs/{model}" for model in MODELS] + ["/metrics"]
    ):
        async with session.get(daemon.url + path, headers=headers) as answer:
            seen.add(path.partition("?")[0], await answer.text())
    async with session.get(f"{daemon.url}/swapd/v1/events", headers=headers) as answer:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                async for chunk in answer.content.iter_any():
                    seen.add("events", chunk.decode())
    for pid in [daemon.process.pid, *daemon.descendants()]:
        place = Path(f"/proc/{pid}")
        seen.add("command lines", (place / "cmdline").read_text())
        if pid != daemon.process.pid:
            given = VARIABLE_OF_SETTING in (place / "environ").read_text()
            where = "environment of its worker" if given else "environments of workers"
            seen.add(where, (place / "environ").read_text())


def read_files(directory: Path, seen: Seen) -> int:
    """Every byte that is kept; how many."""
    size = 0
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            size += len(content)
            seen.add(f"file {path.name}", content.decode("latin-1"))
    return size


async def test_a_secret_is_in_no_log_error_metric_event_file_or_process(
    tmp_path: Path, yaml: str, capfd: pytest.CaptureFixture[str]
) -> None:
    seen, good = Seen(), {"Authorization": f"Bearer {KEY}"}
    async with elsewhere() as (port, heard):
        yaml = yaml.replace("PORT", str(port))
        async with running_daemon(tmp_path, yaml, env=ENVIRONMENT) as daemon, clients() as session:
            for model in MODELS:
                for path, body in chats("tokens=2 die_after=1" if model == "scripted" else ""):
                    await ask(daemon, session, seen, "POST", path, good, {"model": model, **body})
            for headers in ({"Authorization": f"Bearer {WRONG_KEY}"}, {"X-Api-Key": WRONG_KEY}, {"X-Api-Key": KEY}):
                for method, _, path in all_routes("real"):
                    if not path.endswith(("unload", "pause")):
                        body = {"model": "real", "prompt": PROMPT} if method == "POST" else None
                        await ask(daemon, session, seen, method, path, headers, body)
            await ask(daemon, session, seen, "POST", "/v1/chat/completions", good, {"model": "real", "messages": []})
            await look_inside(daemon, session, seen)
            daemon.config.write_text(yaml.replace(SETTING, f"{SETTING}2"))
            await daemon.logged(event="configuration reloaded")
            daemon.config.write_text(yaml.replace(f"{{{VARIABLE_OF_SETTING}: {SETTING}}}", f"[{SETTING}]"))
            await daemon.logged(kind="config_refused")
            await look_inside(daemon, session, seen)
            daemon.process.terminate()
            await asyncio.wait_for(daemon.process.wait(), 20)
        seen.add("log", "\n".join(json.dumps(line) for line in daemon.lines))
    (tmp_path / "swapd.yaml").unlink()
    kept = read_files(tmp_path / "state", seen) + read_files(tmp_path / "run", seen)
    out, err = capfd.readouterr()
    seen.add("standard output", out)
    seen.add("standard error", err)
    texts = sum(len(text) for one in seen.texts.values() for text in one)
    figure(
        23, f"{len(SECRETS)} secrets, {texts:,} characters of {len(seen.texts)} kinds looked at: {len(seen.found())}"
    )
    assert seen.found() == [], seen.found()
    assert kept > 0
    assert {200, 400, 401, 404, 422} <= seen.statuses
    # It was there, and went where it was to go alone.
    assert any(f"Bearer {REMOTE_KEY}" in head for head in heard)
    assert not [head for head in heard if KEY in head or COOKIE in head or QUERY in head or VARIABLE in head]
    assert os.environ.get("FAR_KEY") is None
