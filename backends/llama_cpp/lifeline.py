"""What ties this process to the daemon that started it: it must never outlive it, nor outlast its own defects.

Owns the reading side of the control channel, the kernel's parent-death signal and the exits that ask nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from typing import NoReturn

from backends.ties import die_with_parent, go_first

EXIT_LOST_DAEMON = 3
EXIT_DEFECT = 4

log = logging.getLogger(__name__)


def attach(control: socket.socket) -> None:
    """Tie this process to the other end of `control`. Call before anything slow."""
    die_with_parent()
    go_first()
    # The terminal's Ctrl-C reaches the whole process group; when to stop is the daemon's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _on_thread_death
    threading.Thread(target=_watch, args=(control,), name="lifeline", daemon=True).start()


def _watch(control: socket.socket) -> None:
    """Read until end of file; what the daemon writes, if anything, has no meaning yet."""
    with contextlib.suppress(OSError):
        while control.recv(4096):
            pass
    leave(EXIT_LOST_DAEMON)


def _on_thread_death(args: threading.ExceptHookArgs) -> None:
    """A worker without its engine thread answers nobody, so the daemon had better see it gone."""
    name = args.thread.name if args.thread else "a thread"
    log.critical("%s died; the worker cannot go on", name, exc_info=args.exc_value)
    leave(EXIT_DEFECT)


def leave(code: int) -> NoReturn:
    """End the process at once, whatever any thread is doing."""
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(code)
