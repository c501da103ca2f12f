"""Reads the files of models that are about to be loaded into the page cache, while others still leave.

Owns the reading and its bounds. Whose files are read, and until when, is the core's to say.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import structlog

log = structlog.get_logger()

PIECE_BYTES = 4 * 1024 * 1024
"""After each piece the reading can be stopped, and what is free is looked at again."""

MARGIN_BYTES = 512 * 1024 * 1024
"""RAM that is left free of what is read ahead."""


class ReadAheads:
    """One task for each model whose files are to be read, and one thread that reads for them in turn."""

    def __init__(
        self,
        free_bytes: Callable[[], int],
        own: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._free_bytes = free_bytes
        self._own = own
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, model_id: str, files: Sequence[Path], needed_bytes: int) -> None:
        """Read the files, as far as `needed_bytes` of RAM, which the model takes for other things, stay free."""
        self.stop(model_id)
        self._tasks[model_id] = self._own(self._read(model_id, files, needed_bytes), f"read ahead {model_id}")

    def stop(self, model_id: str) -> None:
        """Harmless if nothing is read, or all has been."""
        task = self._tasks.pop(model_id, None)
        if task is not None:
            task.cancel()

    async def _read(self, model_id: str, files: Sequence[Path], needed_bytes: int) -> None:
        stopped = Event()
        work = partial(read_files, files, lambda: self._free_bytes() - needed_bytes, stopped.is_set)
        try:
            read_bytes = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            stopped.set()
        log.debug("read ahead", model=model_id, read_bytes=read_bytes)


def read_files(files: Sequence[Path], room_bytes: Callable[[], int], is_stopped: Callable[[], bool]) -> int:
    """Have the files cached as far as there is room, and return how many bytes were not before. Blocks.

    A file that cannot be read ends it: what loads it will say so.
    """
    buffer = bytearray(PIECE_BYTES)
    read_bytes = 0
    with suppress(OSError):
        for path in files:
            with path.open("rb", buffering=0) as file:
                for start in range(0, os.fstat(file.fileno()).st_size, PIECE_BYTES):
                    if is_stopped() or room_bytes() < MARGIN_BYTES + PIECE_BYTES:
                        return read_bytes
                    read_bytes += _read_piece(file.fileno(), start, buffer)
    return read_bytes


def _read_piece(fd: int, start: int, buffer: bytearray) -> int:
    """Really reads: of what `posix_fadvise` is asked for in advance, all beyond one request of the disk is silently
    left out (mm/readahead.c, force_page_cache_ra)."""
    end = min(start + PIECE_BYTES, os.fstat(fd).st_size)
    if end > start and _is_cached(fd, end - 1):
        return 0
    return os.preadv(fd, [buffer], start)


def _is_cached(fd: int, position: int) -> bool:
    """Whether a byte can be read without waiting. No where the file system does not say: then it is read once more."""
    try:
        return os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT) == 1
    except OSError:
        return False
