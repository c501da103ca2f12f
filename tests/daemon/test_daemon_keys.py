"""Keys in the whole daemon: where it may listen, edits of their file, and that they are seen nowhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml, start

from swapd.config.keys import ApiKey, Scope, digest, entry_text

FIRST, SECOND = "sk-swapd-canary-first", "sk-swapd-canary-second"
CHAT: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "tokens=2"}]}


def entry(name: str, secret: str, **fields: Any) -> str:
    return entry_text(ApiKey(name=name, digest=digest(secret), scopes=tuple(Scope), **fields))


async def ask(daemon: RunningDaemon, path: str, key: str | None, body: object = None) -> tuple[int, str]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request("GET" if body is None else "POST", daemon.url + path, json=body) as answer,
    ):
        if answer.content_type == "text/event-stream" and body is None:
            return answer.status, (await answer.content.readany()).decode()
        return answer.status, await answer.text()


async def test_an_edit_of_the_keys_counts_at_once_and_a_mistaken_one_not_at_all(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(entry("ann", FIRST))
    yaml = scripted_yaml(tmp_path, "  a: {path: a.model, memory_mib: 100}\n", server="  keys: keys\n")
    seen: list[str] = []
    async with running_daemon(tmp_path, yaml) as daemon:
        assert (await ask(daemon, "/v1/chat/completions", None, CHAT))[0] == 401
        assert (await ask(daemon, "/v1/chat/completions", SECOND, CHAT))[0] == 401
        status, text = await ask(daemon, "/v1/chat/completions", FIRST, CHAT)
        assert status == 200
        seen.append(text)
        assert (await ask(daemon, "/health", None))[0] == 200

        keys.write_text(f"bob: {SECOND}\n")
        refused = await daemon.logged(kind="keys_refused")
        assert refused["event"].startswith(f"{keys}:1: bob: must be a block of keys")
        document = json.loads((await ask(daemon, "/swapd/v1/status", FIRST))[1])
        assert document["config"]["error"] == refused["event"]

        keys.write_text(entry("bob", SECOND))
        await daemon.logged(event="keys reloaded", keys=1)
        assert (await ask(daemon, "/swapd/v1/status", FIRST))[0] == 401
        for path in ("/swapd/v1/status", "/metrics", "/swapd/v1/events", "/swapd/v1/logs/a", "/v1/models"):
            status, text = await ask(daemon, path, SECOND)
            assert status == 200
            seen.append(text)
        assert json.loads(seen[1])["config"]["error"] is None
        status, text = await ask(daemon, "/v1/chat/completions", SECOND, {**CHAT, "model": "none"})
        assert status == 404
        seen.append(text)
        await daemon.logged(event="request", key="bob", status=404)
    assert any(line.get("key") == "ann" for line in daemon.lines)
    for text in (*seen, json.dumps(daemon.lines)):
        assert "canary" not in text


async def test_tokens_are_settled_by_what_the_worker_counted(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(entry("ann", FIRST, tokens_per_minute=400))
    yaml = scripted_yaml(tmp_path, "  a: {path: a.model, memory_mib: 100}\n", server="  keys: keys\n")
    async with running_daemon(tmp_path, yaml) as daemon:
        # Each is estimated at more than half of what a minute brings, and each takes a few tokens. The count may come a
        # moment after the answer; without it, it would take 20 s until there is enough for another one.
        async with asyncio.timeout(10):
            for _ in range(4):
                while (await ask(daemon, "/v1/chat/completions", FIRST, CHAT))[0] != 200:
                    pass


@pytest.mark.parametrize(
    ("server", "what"),
    [
        ("  keys: nowhere\n", "nowhere:1: file: cannot be read: No such file or directory"),
        ("  keys: $CREDENTIALS_DIRECTORY/keys\n", "server.keys: $CREDENTIALS_DIRECTORY/keys needs a unit with"),
        ("  open_to_network: true\n", "0.0.0.0:0 can be reached from the network and there are no API keys"),
    ],
)
async def test_a_start_that_would_leave_the_door_open_fails_in_one_line(server: str, what: str, tmp_path: Path) -> None:
    config = tmp_path / "swapd.yaml"
    text = scripted_yaml(tmp_path, "  a: {path: a.model, memory_mib: 100}\n", server=server)
    config.write_text(text.replace("127.0.0.1:0", "0.0.0.0:0"))
    process = await start(tmp_path, config, env={"CREDENTIALS_DIRECTORY": ""})
    _, err = await process.communicate()
    lines = [line for line in err.decode().splitlines() if not line.startswith("{")]
    assert process.returncode == 1
    assert len(lines) == 1, err
    assert what in lines[0]


async def test_with_a_credential_of_systemds_it_listens_to_the_network(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "keys").write_text(entry("ann", FIRST))
    yaml = scripted_yaml(
        tmp_path, "  a: {path: a.model, memory_mib: 100}\n", server="  keys: $CREDENTIALS_DIRECTORY/keys\n"
    ).replace("127.0.0.1:0", "0.0.0.0:0")
    async with running_daemon(tmp_path, yaml, env={"CREDENTIALS_DIRECTORY": str(credentials)}) as daemon:
        assert (await ask(daemon, "/v1/models", None))[0] == 401
        assert (await ask(daemon, "/v1/models", FIRST))[0] == 200
