"""`python -m support.scripted_daemon CONFIG`: the real daemon with the scripted backend beside the real one.

On SIGUSR1 it says in its log which tasks there are.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from support.scripted_backend import ScriptedBackend

from backends.registry import installed_backends
from swapd import daemon
from swapd.config.load import load
from swapd.config.problems import ConfigError
from swapd.errors import StartupError


def say_tasks(number: int, _frame: object) -> None:
    names = [getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks()]
    print(json.dumps({"event": "tasks", "names": json.dumps(sorted(names))}), file=sys.stderr, flush=True)


def main() -> int:
    signal.signal(signal.SIGUSR1, say_tasks)
    backends = {**installed_backends(), ScriptedBackend.name: ScriptedBackend()}
    path = Path(sys.argv[1])
    try:
        return daemon.run(load(path, backends), backends)
    except (StartupError, ConfigError) as error:
        print(f"swapd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
