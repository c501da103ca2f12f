"""`python -m support.daemon_zygote`: makes daemons, each a real process of its own, without importing everything anew.

Reads lines of a configuration's path and a log's, forks a daemon for each, and writes its process id.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from support.scripted_backend import ScriptedBackend

from backends.registry import installed_backends
from swapd import daemon
from swapd.config.load import load


def serve(config: str, log: str) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, instead in ((0, nothing), (1, nothing), (2, written)):
        os.dup2(instead, fd)
    backends = {**installed_backends(), ScriptedBackend.name: ScriptedBackend()}
    return daemon.run(load(Path(config), backends), backends)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        config, log = line.split()
        pid = os.fork()
        if pid == 0:
            os._exit(serve(config, log))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
