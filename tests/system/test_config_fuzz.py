"""1,000 damaged configurations, one after the other, into a running daemon that is told to reload.

What is sound is in force afterwards, what is not is told of word for word, and the last good one stays in force.
`SWAPD_REPEATS=1` tries all of them.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.config_damage import damage
from support.repeats import first_seed, repeats
from support.running_daemon import RunningDaemon, chat, running_daemon, scripted_yaml, stop
from support.scripted_backend import ScriptedBackend

from backends.registry import installed_backends
from swapd.config.load import load
from swapd.config.problems import ConfigError
from swapd.config.schema import Config

RELOADS = 1_000
CHAT_EVERY = 20
MODELS = """\
  a:
    path: a.model
    memory_mib: 90
    aliases: [first]
    params: {set: {temperature: 0.5}, strip: [top_k]}
    idle_unload: 10m
  b: {path: b.model, memory_mib: 80, priority: 2, max_wait: 30s}
  c: {path: c.model, memory_mib: 10, pin: false}
"""


async def reloaded(daemon: RunningDaemon, models: list[str], error: str | None) -> None:
    """Ask for a reload, and return once the daemon says this of its configuration."""
    now_s = asyncio.get_running_loop().time
    asked_s = now_s()
    stop(daemon, signal.SIGHUP)
    async with asyncio.timeout(20):
        while True:
            config: dict[str, Any] = (status := await daemon.status())["config"]
            fresh = error is not None or config["loaded_ago_s"] <= now_s() - asked_s
            if config["error"] == error and fresh and models == [model["id"] for model in status["models"]]:
                return
            await asyncio.sleep(0.01)


def outcome(path: Path, backends: dict[str, Any]) -> Config | ConfigError:
    try:
        return load(path, backends)
    except ConfigError as error:
        return error


@pytest.mark.timeout(1200)
async def test_a_daemon_takes_what_is_sound_and_keeps_the_last_good_one_otherwise(tmp_path: Path) -> None:
    backends = {**installed_backends(), ScriptedBackend.name: ScriptedBackend()}
    sound = scripted_yaml(tmp_path, MODELS, top="queue: {max_waiting: 16, timeout: 1m}\n")
    lines = sound.splitlines(keepends=True)
    applied = refused = 0
    async with running_daemon(tmp_path, sound) as daemon:
        in_force = ["a", "b", "c"]
        for seed in range(first_seed(), first_seed() + repeats(RELOADS)):
            text = damage(lines, random.Random(seed))
            daemon.config.write_bytes(text.encode("utf-8", "surrogatepass"))
            found = outcome(daemon.config, backends)
            if isinstance(found, ConfigError):
                refused += 1
            else:
                applied += 1
                in_force = list(found.models)
            try:
                await reloaded(daemon, in_force, str(found) if isinstance(found, ConfigError) else None)
            except (TimeoutError, OSError, aiohttp.ClientError) as error:
                pytest.fail(f"seed {seed}: {error!r}")
            if seed % CHAT_EVERY == 0 and "a" in in_force:
                await chat(daemon.url, "a", "tokens=1")
        daemon.config.write_text(sound)
        await reloaded(daemon, ["a", "b", "c"], None)
        assert (await chat(daemon.url, "b", "tokens=1")).done
        print(f"{applied + refused} reloads from seed {first_seed()} on: {applied} applied, {refused} refused")
        loud = [line for line in daemon.lines if line.get("level") == "error" and line.get("kind") != "config_refused"]
        assert not loud, loud[:3]
    assert applied > 0
    assert refused > 0.2 * repeats(RELOADS)
