"""A disk that can be full: a small file system where this may be mounted, else a limit on the files of a process."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SIZE = "2m"


class Disk:
    """The one below `directory`."""

    def __init__(self, directory: Path, *, is_mounted: bool) -> None:
        self._filler = directory / "filler"
        self.is_mounted = is_mounted

    @property
    def kind(self) -> str:
        return "a tmpfs that is full" if self.is_mounted else "files that may not grow"

    def fill(self, pid: int) -> None:
        """From now on `pid` can write nothing more."""
        if not self.is_mounted:
            psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        try:
            with self._filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            pass

    def free(self, pid: int) -> None:
        """There is room again."""
        if self.is_mounted:
            self._filler.unlink(missing_ok=True)
        else:
            psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def small_disk(directory: Path) -> Iterator[Disk]:
    """Have `directory` on a disk of its own, if that is permitted here."""
    directory.mkdir(mode=0o700, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "swapd-tests", str(directory)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield Disk(directory, is_mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
