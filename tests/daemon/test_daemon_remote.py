"""One daemon's models served by another: real processes, TLS between them, keys that stay where they belong."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from support.running_daemon import RunningDaemon, Stream, chat, running_daemon, scripted_yaml
from support.tls_front import Front, certified, tls_front

KEY = "canary-sk-1234"


@dataclass
class Two:
    near: RunningDaemon
    far: RunningDaemon
    front: Front


@asynccontextmanager
async def two_daemons(tmp_path: Path) -> AsyncIterator[Two]:
    """The near one has a model of its own and one that the far one serves behind TLS, all the far one can be asked."""
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "key").write_text(KEY + "\n")
    identity = certified(tmp_path / "near")
    far_models = "  b: {path: b.model, memory_mib: 100, n_parallel: 2, reports: false}\n"
    async with running_daemon(tmp_path / "far", scripted_yaml(tmp_path / "far", far_models)) as far:
        async with tls_front(identity, int(far.url.rpartition(":")[2])) as front:
            near_models = (
                "  a: {path: a.model, memory_mib: 240}\n"
                f"  b: {{backend: remote, proxy: 'https://localhost:{front.port}/v1', ca_file: ca.pem,"
                " api_key_file: key, n_parallel: 2, health: /health}\n"
            )
            async with running_daemon(tmp_path / "near", scripted_yaml(tmp_path / "near", near_models)) as near:
                yield Two(near, far, front)


async def test_models_elsewhere_are_served_beside_ours_and_break_and_mend_without_a_word_of_the_key(
    tmp_path: Path,
) -> None:
    async with two_daemons(tmp_path) as two:
        near, far, front = two.near, two.far, two.front
        told: list[str] = []

        # A whole stream, and its tokens counted on both sides by a chunk that the client never sees.
        stream = await chat(near.url, "b", "tokens=5")
        assert stream.done
        assert [json.loads(one)["choices"][0]["delta"]["content"] for one in stream.events[:-1]] == [
            f"t{number} " for number in range(5)
        ]
        for daemon in (near, far):
            assert await _metric(daemon, 'swapd_generation_tokens_total{model="b"}') == 5.0
            assert await _metric(daemon, 'swapd_prompt_tokens_total{model="b"}') == 7.0
        # It holds nothing, and our own model, which takes all there is, is loaded beside it.
        assert (await chat(near.url, "a", "tokens=1")).done
        shown = await near.model("b")
        assert (shown["state"], shown["workers"][0]["pid"], shown["workers"][0]["reserved_bytes"]) == (
            "ready",
            None,
            {},
        )
        assert (await far.model("b"))["loads"] == 1

        # The client's own key stays here; ours goes there.
        headers = {"Authorization": "Bearer client-canary"}
        async with aiohttp.ClientSession() as session:
            body = {"model": "b", "messages": [{"role": "user", "content": "tokens=1"}]}
            async with session.post(f"{near.url}/v1/chat/completions", json=body, headers=headers) as answer:
                assert answer.status == 200
        assert b"client-canary" not in front.seen
        assert f"Authorization: Bearer {KEY}\r\n".encode() in front.seen

        # Cut in the middle: an error event, never [DONE].
        broken = Stream()
        task = asyncio.create_task(chat(near.url, "b", "tokens=200 gap_s=0.05", broken))
        await asyncio.wait_for(broken.first.wait(), 20)
        front.cut()
        await asyncio.wait_for(task, 20)
        assert not broken.done
        assert broken.error is not None
        assert broken.error["code"] == "worker_lost"

        # Gone: 503 with its reason and Retry-After, and backing off without a connection.
        refused = await _refused(near, told)
        assert refused["code"] == "model_load_failed"
        assert "localhost" in refused["message"]
        assert (await near.model("b"))["retry_in_s"] > 0
        assert (await chat(near.url, "a", "tokens=1")).done

        # Back: asking for the load does not wait for the back-off.
        front.is_cut = False
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{near.url}/swapd/v1/models/b/load") as answer:
                assert answer.status == 200
        assert (await chat(near.url, "b", "tokens=2")).done

        # The far one is stopped for good while it streams.
        broken = Stream()
        task = asyncio.create_task(chat(near.url, "b", "tokens=200 gap_s=0.05", broken))
        await asyncio.wait_for(broken.first.wait(), 20)
        far.process.send_signal(signal.SIGKILL)
        await asyncio.wait_for(task, 20)
        assert not broken.done
        assert broken.error is not None

        told += [json.dumps(await near.status()), json.dumps(broken.error), json.dumps(near.lines)]
        async with aiohttp.ClientSession() as session:
            for path in ("/metrics", "/v1/models", "/swapd/v1/logs/b"):
                async with session.get(near.url + path) as answer:
                    told.append(await answer.text())
        assert not any(KEY in text or "client-canary" in text for text in told)


async def _metric(daemon: RunningDaemon, name: str) -> float | None:
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), None)


async def _refused(near: RunningDaemon, told: list[str]) -> dict[str, str]:
    """The error that whoever asks gets, once the server is known to be away."""
    async with asyncio.timeout(20):
        while True:
            stream = await chat(near.url, "b", "tokens=1")
            told.append(stream.body)
            if stream.status == 503:
                error: dict[str, str] = json.loads(stream.body)["error"]
                return error
            assert stream.status == 502
