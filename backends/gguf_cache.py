"""Keeps the headers of the last few files, so that one that has not changed is not read again.

Owns a bounded table by file identity. Safe for threads. Must never return a header of files that were replaced or
written to since.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from backends.gguf import GgufHeader, read_header

MAX_HEADERS = 32
"""Of a tensor table of a thousand entries each takes about half a MiB."""

Identity = tuple[tuple[int, int, int, int, int], ...]
"""Device, inode, size, times of change of the content and of the file, of each file."""


class HeaderCache:
    """`read` answers like `backends.gguf.read_header`."""

    def __init__(self, most: int = MAX_HEADERS) -> None:
        self._most = most
        self._kept: OrderedDict[Path, tuple[Identity, GgufHeader]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, files: tuple[Path, ...]) -> GgufHeader:
        """The header of the model that `files` are, the first one first. Raises `InvalidModelError`."""
        identity = identify(files)
        with self._lock:
            kept = self._kept.get(files[0])
            if kept is not None and kept[0] == identity:
                self._kept.move_to_end(files[0])
                return kept[1]
        header = read_header(files[0])
        # A file that changes while it is read is read again next time: the identity is the one from before.
        if identity is not None and header.files == files:
            with self._lock:
                self._kept[files[0]] = (identity, header)
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
        return header


def identify(files: tuple[Path, ...]) -> Identity | None:
    """What tells these files from others, and from what they were; None while one is missing."""
    try:
        found = [file.stat() for file in files]
    except (OSError, ValueError):
        return None
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found)
