"""Finds the binary and reads once, from its `--help`, which flags it knows.

Owns the one process that is run for that, within bounds, and what is remembered of it: as long as the file is the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

from backends.base import InvalidModelError
from backends.environment import worker_environment

NAME = "llama-server"
HELP_TIMEOUT_S = 20.0
MAX_HELP_BYTES = 1024 * 1024
MAX_KEPT = 16
_FLAG = re.compile(r"(?<![^\s,])--?[A-Za-z][\w.-]*")

Seen = tuple[str, int, int, int, int]
_kept: dict[Seen, frozenset[str]] = {}
_lock = threading.Lock()


def find(binary: Path | None) -> Path | None:
    """The file that is run; None if it was left to PATH and is not there. Looks at directories only."""
    if binary is not None:
        return binary
    found = shutil.which(NAME)
    return Path(found) if found else None


def require(binary: Path | None) -> Path:
    """Raises `InvalidModelError` when there is no such program."""
    found = find(binary)
    if found is None:
        raise InvalidModelError(f"no {NAME} is on the PATH of swapd; give its file with binary")
    if not found.is_file() or not os.access(found, os.X_OK):
        raise InvalidModelError(f"{found}: is no program that can be run; give llama-server's file with binary")
    return found


def known_flags(path: Path) -> frozenset[str]:
    """Every flag that the binary's help names. Runs it the first time. Raises `InvalidModelError`."""
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from None
    seen = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    with _lock:
        if seen not in _kept:
            flags = read_flags(_help(path))
            if "--model" not in flags:
                raise InvalidModelError(f"{path}: is no llama-server: its --help tells of no --model")
            while len(_kept) >= MAX_KEPT:
                _kept.pop(next(iter(_kept)))
            _kept[seen] = flags
        return _kept[seen]


def read_flags(text: str) -> frozenset[str]:
    """The flags at the beginnings of a help's entries, such as `-ngl,  --gpu-layers, --n-gpu-layers N`."""
    found: set[str] = set()
    for line in text.splitlines():
        if line.startswith("-"):
            # What comes after two spaces is the explanation, but after a comma there may be as many.
            head = re.sub(r",\s+", ",", line).split("  ", 1)[0]
            found.update(_FLAG.findall(head))
    return frozenset(found)


def _help(path: Path) -> str:
    try:
        done = subprocess.run(
            (str(path), "--help"),
            env=worker_environment(os.environ, {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_TIMEOUT_S,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidModelError(f"{path}: --help did not end within {HELP_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise InvalidModelError(f"{path}: could not be run: {error.strerror}") from None
    text = done.stdout[:MAX_HELP_BYTES].decode("utf-8", "replace")
    if done.returncode != 0:
        raise InvalidModelError(f"{path}: --help failed with status {done.returncode}: {text[-300:].strip()}")
    return text
