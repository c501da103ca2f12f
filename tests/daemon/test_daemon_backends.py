"""One budget that holds one model: the embedded worker, a llama-server and a program leave for each other."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.every_backend import SERVER
from support.gguf_files import smollm2_path
from support.llama_server_binary import llama_server
from support.running_daemon import RunningDaemon, Stream, chat, running_daemon

from backends import ties

BUDGET_MIB = 420
CONFIG = """
server:
  listen: 127.0.0.1:0
  state_dir: {directory}/state
  runtime_dir: {directory}/run
  warm_spare: false
memory: {{budget: {{RAM: {budget}MiB}}}}
turns: {{turn: 1s, max_wait: 2s}}
models:
  embedded: {{path: {smollm2}, n_ctx: 2048, n_threads: 1, use_extra_bufts: false}}
  llama-server:
    backend: llama_server
    binary: {binary}
    path: {smollm2}
    n_ctx: 2048
    n_threads: 1
    use_extra_bufts: false
  program:
    backend: command
    cmd: [{python}, {server}, --uds, "${{SOCKET}}"]
    proxy: unix:${{SOCKET}}
    memory: {{RAM: 300MiB}}
"""
MARKS = {"embedded": "backends.llama_cpp", "llama-server": "llama-server", "program": SERVER.name}
"""What is in the command lines of each model's processes."""


def running(daemon: RunningDaemon) -> set[str]:
    """The models that have processes; a guard is not what it guards."""
    lines = []
    for pid in daemon.descendants():
        try:
            lines.append(" ".join(psutil.Process(pid).cmdline()))
        except psutil.NoSuchProcess:
            continue
    return {name for name, mark in MARKS.items() if any(mark in line and "guard" not in line for line in lines)}


def _oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def oom_scores(daemon: RunningDaemon) -> tuple[set[int], set[int]]:
    """How willingly the kernel takes the workers with all they have started, and the daemon with its guards."""
    workers, own = set(), {_oom_score_adj(daemon.process.pid)}
    for pid in daemon.descendants():
        with suppress(psutil.NoSuchProcess, OSError):
            (own if "backends.guard" in psutil.Process(pid).cmdline() else workers).add(_oom_score_adj(pid))
    return workers, own


@pytest.mark.skipif(llama_server().path is None, reason=llama_server().why_not)
async def test_each_leaves_for_the_next_whatever_runs_it(tmp_path: Path) -> None:
    text = CONFIG.format(
        directory=tmp_path,
        budget=BUDGET_MIB,
        smollm2=smollm2_path(),
        binary=llama_server().path,
        python=sys.executable,
        server=SERVER,
    )
    async with running_daemon(tmp_path, text) as daemon:
        before = None
        for name in ("embedded", "llama-server", "program", "embedded", "program", "llama-server", "embedded"):
            stream = await chat(daemon.url, name, "What is the capital of France?", max_tokens=2, temperature=0)
            assert stream.done, stream.body
            assert running(daemon) == {name}
            workers, own = oom_scores(daemon)
            assert min(workers) >= ties.OOM_SCORE_ADJ > max(own)
            status = await daemon.status()
            loaded = {model["id"]: model for model in status["models"] if model["workers"]}
            assert list(loaded) == [name]
            (ram,) = status["devices"]
            assert 150 < ram["reserved_bytes"] / 2**20 <= BUDGET_MIB
            if before is not None:
                assert name in (await daemon.model(before))["last_eviction"]["why"]
            before = name
        # One that is busy finishes what it runs.
        story = Stream()
        telling: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
        told = asyncio.create_task(chat(daemon.url, "embedded", "Tell a story.", story, **telling))
        await story.first.wait()
        assert (await chat(daemon.url, "program", "What is the capital of France?")).done
        assert told.done()
        assert (await told).done
        assert running(daemon) == {"program"}
