"""A running daemon's requests recorded by the real command, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from support.oracle import until
from support.running_daemon import chat, running_daemon, scripted_yaml

from swapd.simulate.trace import read

MODELS = "  a: {path: a.model, memory_mib: 100}\n"


async def test_what_a_daemon_served_is_a_trace_without_what_was_said(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, MODELS)) as daemon:
        recorder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "swapd", "record", str(file), "--url", daemon.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert recorder.stderr is not None
        assert b"recording into" in await asyncio.wait_for(recorder.stderr.readline(), 60)
        assert (await chat(daemon.url, "a", "tokens=4 secret")).done
        await until(lambda: asyncio.to_thread(lambda: b'"request"' in file.read_bytes()))
        recorder.send_signal(signal.SIGINT)
        said, _ = await asyncio.wait_for(recorder.communicate(), 30)
    assert recorder.returncode == 0
    assert b"try: swapd simulate" in said
    with file.open("rb") as lines:
        trace = read(lines)
    first = trace.requests[0]
    assert (first.model, first.priority, first.output_tokens) == ("a", 0, 4)
    assert first.service_s is not None
    assert 0 < first.service_s < 10
    assert trace.models["a"].load_s is not None
    assert "secret" not in file.read_text()
    assert "127.0.0.1" not in file.read_text()
