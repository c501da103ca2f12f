"""One daemon per state directory: an advisory lock on a file in it.

Owns the file `swapd.lock` and its content, the holder's process id. The kernel drops the lock with the
process, so a crash leaves nothing to clean up; the file itself stays, because removing it would race with
the next daemon that opens it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from swapd.errors import StartupError

NAME = "swapd.lock"


@contextlib.contextmanager
def hold(directory: Path, pid: int) -> Iterator[None]:
    """Hold the directory's lock for the body. Raises `StartupError` that names the process which has it."""
    path = directory / NAME
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartupError(f"cannot open {path}: {error.strerror}") from error
    try:
        _acquire(fd, path)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{pid}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise StartupError(
            f"another swapd (pid {holder}) already uses {path.parent}; "
            "stop it, or give this one a server.state_dir of its own"
        ) from error
    except OSError as error:
        raise StartupError(f"cannot lock {path}: {error.strerror}") from error
