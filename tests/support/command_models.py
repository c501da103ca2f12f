"""Models that are run by the foreign server of the tests, and a directory of programs that it stands for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

from backends.command import CommandSettings
from swapd.config.schema import Model

SERVER = Path(__file__).with_name("foreign_server.py")
PRESETS = Path(__file__).parents[2] / "docs" / "backends.md"
MIB = 1024 * 1024


def command(name: str, *flags: str, policy: dict[str, object] | None = None, **settings: object) -> Model:
    """A model of the foreign server on a Unix socket, started with these flags."""
    words = {
        "cmd": (sys.executable, "-S", str(SERVER), "--uds", "${SOCKET}", *flags),
        "proxy": "unix:${SOCKET}",
        "memory": {"RAM": 50 * MIB},
    }
    return Model(id=name, backend="command", settings=CommandSettings(**(words | settings)), **(policy or {}))  # type: ignore[arg-type]


def stand_ins(directory: Path) -> None:
    """Programs by the names that the presets use, each of which is the foreign server. `docker stop` leaves a note."""
    directory.mkdir(exist_ok=True)
    server = f'exec {sys.executable} -S {SERVER} "$@"'
    for name in ("vllm", "whisper-server", "sd-server", "venv/bin/python"):
        _program(directory / name, server)
    run = server.replace('"$@"', '--port "$(echo "$@" | sed "s/.*-p 127.0.0.1:\\([0-9]*\\):.*/\\1/")"')
    stop = f'echo "$@" > {directory}/stopped; exec kill $(cat {directory}/container)'
    _program(directory / "docker", f'if [ "$1" = stop ]; then {stop}; fi; echo $$ > {directory}/container; {run}')


def _program(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def presets() -> dict[str, str]:
    """The YAML of each section of presets, by the model's name."""
    section = PRESETS.read_text().partition("\n## Presets\n")[2]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    return {next(iter(yaml.safe_load(block)["models"])): block for block in blocks}
