"""A worker that listens on a port and reports nothing: real processes, counted and watched by what they answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import aiohttp
from support.running_daemon import Stream, chat, running_daemon, scripted_yaml
from support.running_pool import gone


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_it_is_counted_by_its_answers_and_killed_for_its_silence(tmp_path: Path) -> None:
    model = f"a: {{path: a.model, port: {free_port()}, reports: false, stall_timeout: 1s, first_token_timeout: 1.5}}"
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, f"  {model}\n")) as daemon:
        stream = await chat(daemon.url, "a", "tokens=4")
        assert (stream.done, len(stream.events)) == (True, 5)
        asked = await chat(daemon.url, "a", "tokens=2", stream_options={"include_usage": True})
        assert json.loads(asked.events[-2])["usage"] == {"prompt_tokens": 7, "completion_tokens": 2}
        async with aiohttp.ClientSession() as session:
            body = {"model": "a", "messages": [{"role": "user", "content": "tokens=3"}]}
            async with session.post(f"{daemon.url}/v1/chat/completions", json=body) as answer:
                assert (await answer.json())["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
            async with session.get(f"{daemon.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
        assert 'swapd_generation_tokens_total{model="a"} 9.0' in lines
        assert 'swapd_prompt_tokens_total{model="a"} 21.0' in lines

        # Bytes keep it alive for longer than its silence may last.
        assert (await chat(daemon.url, "a", "tokens=5 gap_s=0.3")).done
        hung = Stream()
        task = asyncio.create_task(chat(daemon.url, "a", "tokens=100 gap_s=0.05", hung))
        await asyncio.wait_for(hung.first.wait(), 20)
        pid = await daemon.pid("a")
        os.kill(pid, signal.SIGSTOP)
        await asyncio.wait_for(task, 10)
        assert not hung.done
        assert hung.error is not None
        assert "worker_lost" in hung.error["code"]
        await asyncio.wait_for(gone(pid), 5)
        assert (await daemon.logged(kind="worker_lost"))["event"].endswith("for 1 s (stall_timeout) and was killed")

        # Before its first token it may be silent for longer, and not for ever.
        late = await chat(daemon.url, "a", "tokens=1 gap_s=1.2")
        assert late.done
        started = await chat(daemon.url, "a", "tokens=1 gap_s=60")
        assert not started.done
        last = [line["event"] for line in daemon.lines if line.get("kind") == "worker_lost"][-1]
        assert last.endswith("for 1.5 s (first_token_timeout) and was killed")
