"""Reading ahead: files end up in the page cache, as far as there is room and somebody wants them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from swapd.pool.read_ahead import MARGIN_BYTES, PIECE_BYTES, ReadAheads, read_files

SIZE = 5 * PIECE_BYTES // 2
ROOM = MARGIN_BYTES + 100 * PIECE_BYTES


def uncached(path: Path) -> Path:
    """A file on a disk, out of the page cache."""
    path.write_bytes(os.urandom(SIZE))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(fd, [bytearray(1)], SIZE - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        return path
    except OSError:
        pass
    finally:
        os.close(fd)
    pytest.skip("the file system of the temporary directory keeps everything cached, or does not say")


def is_cached(path: Path, position: int) -> bool:
    with path.open("rb", buffering=0) as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], position, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


def test_files_are_cached_afterwards_and_not_read_twice(tmp_path: Path) -> None:
    files = [uncached(tmp_path / "one"), uncached(tmp_path / "two")]
    assert 0 < read_files(files, lambda: ROOM, lambda: False) <= 2 * SIZE
    assert all(is_cached(path, position) for path in files for position in (0, SIZE // 2, SIZE - 1))
    assert read_files(files, lambda: ROOM, lambda: False) == 0


def test_nothing_is_read_without_room(tmp_path: Path) -> None:
    path = uncached(tmp_path / "one")
    assert read_files([path], lambda: MARGIN_BYTES, lambda: False) == 0
    assert not is_cached(path, 0)


def test_reading_ends_after_the_piece_in_which_it_is_stopped(tmp_path: Path) -> None:
    looks = iter([False, True])
    assert read_files([uncached(tmp_path / "one")], lambda: ROOM, lambda: next(looks)) == PIECE_BYTES


def test_a_file_that_is_gone_or_empty_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_files([tmp_path / "empty", tmp_path / "missing"], lambda: ROOM, lambda: False) == 0


async def test_a_model_is_read_until_it_is_stopped_and_what_it_takes_itself_is_left_free(tmp_path: Path) -> None:
    path = uncached(tmp_path / "one")
    tasks: list[asyncio.Task[None]] = []

    def own(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work, name=name))
        return tasks[-1]

    reading = ReadAheads(lambda: ROOM, own)
    reading.start("a", [path], needed_bytes=ROOM)
    await tasks[-1]
    assert not is_cached(path, 0)
    reading.start("a", [path], needed_bytes=0)
    await tasks[-1]
    assert is_cached(path, SIZE - 1)
    reading.start("a", [path], needed_bytes=0)
    reading.stop("a")
    await asyncio.wait(tasks)
    assert tasks[-1].cancelled()
    reading.stop("a")
