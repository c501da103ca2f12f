"""A small text file, read whole: UTF-8, bounded, and an ordinary file.

Owns the bounds that hold before a file means anything. Must never interpret it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from swapd.config.identity import FileIdentity
from swapd.config.problems import ConfigError, Problem

MAX_FILE_BYTES = 1024 * 1024


def read_text(path: Path) -> tuple[str, FileIdentity]:
    """The file's text, and the identity it had before it was read. Blocking. Raises `ConfigError`."""
    try:
        content, identity = _read_bytes(path)
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise _unreadable(path, too_large())
    return _decoded(content, path), identity


def too_large() -> str:
    return f"is larger than {MAX_FILE_BYTES // 1024}KiB; this is no such file as swapd reads"


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "is UTF-16" if utf16 else f"is not UTF-8 (the byte 0x{content[error.start]:02x})"
        raise _unreadable(path, f"{what}; save it as UTF-8", line) from None


def _read_bytes(path: Path) -> tuple[bytes, FileIdentity]:
    """At most one byte more than allowed. Without O_NONBLOCK, opening a pipe would wait for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is not a regular file")
        return file.read(MAX_FILE_BYTES + 1), FileIdentity.of(found)


def _unreadable(path: Path, message: str, line: int = 1) -> ConfigError:
    return ConfigError(path, [Problem(line, "file", message)])
