"""What a daemon served is known to the next one: tokens and times, and nothing that was said."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from support.running_daemon import chat, running_daemon, scripted_yaml

MODELS = "  a: {path: a.model, memory_mib: 100}\n"


async def test_usage_survives_a_restart(tmp_path: Path) -> None:
    yaml = scripted_yaml(tmp_path, MODELS)
    async with running_daemon(tmp_path, yaml) as daemon:
        for _ in range(2):
            await chat(daemon.url, "a", "tokens=4 secret")
        daemon.process.send_signal(signal.SIGTERM)
        await daemon.process.wait()
    async with running_daemon(tmp_path, yaml) as daemon:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "swapd", "usage", "--json", "--url", daemon.url, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await command.communicate()
    (row,) = json.loads(said)["rows"]
    assert (row["name"], row["requests"], row["failed"], row["completion_tokens"]) == ("a", 2, 0, 8)
    assert row["prompt_tokens"] > 0
    assert row["waited_s"] > 0
    file = tmp_path / "state" / "activity.sqlite"
    assert mode_of(file) == 0o600
    assert b"secret" not in file.read_bytes()


def mode_of(file: Path) -> int:
    return file.stat().st_mode & 0o777
