"""What tells one state of a file from another without reading it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Times are nanoseconds."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def identify(path: Path) -> FileIdentity | None:
    """The identity of the file that `path` leads to through its links; None when there is none."""
    try:
        return FileIdentity.of(path.stat())
    except OSError:
        return None
