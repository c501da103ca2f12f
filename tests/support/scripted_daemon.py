"""`python -m support.scripted_daemon CONFIG`: the real daemon with the scripted backend beside the real one."""

from __future__ import annotations

import sys
from pathlib import Path

from support.scripted_backend import ScriptedBackend

from backends.registry import installed_backends
from swapd import daemon
from swapd.config.load import load
from swapd.config.problems import ConfigError
from swapd.errors import StartupError


def main() -> int:
    backends = {**installed_backends(), ScriptedBackend.name: ScriptedBackend()}
    path = Path(sys.argv[1])
    try:
        return daemon.run(load(path, backends), backends)
    except (StartupError, ConfigError) as error:
        print(f"swapd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
