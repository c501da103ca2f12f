"""Tells when the configuration file may have changed, and only once it has come to rest.

File-system events are hints to look; the decision is made from the file's identity (device, inode, size,
times), so editors that rename, symlinked ConfigMaps and noise in the same directory need no rules of their
own. Must never read the file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

from watchfiles import awatch

from swapd.config.identity import FileIdentity, identify

SETTLE_S = 0.5
"""Between two looks that must agree: a file that is still being written differs."""
LOOK_EVERY_S = 5.0
"""A look without any event, for file systems that send none (NFS, some bind mounts)."""
MAX_LOOKS = 240
"""A file that is written to without end is taken as it is after about two minutes."""
MAX_LINKS = 40
"""As many symbolic links as Linux itself follows in one path."""


def settled(previous: FileIdentity | None, current: FileIdentity | None) -> bool:
    """Whether two looks, a while apart, show a file at rest. A missing file is at rest too."""
    return previous == current


def watched_directories(path: Path) -> tuple[Path, ...]:
    """The directories in which a change can alter what `path` leads to.

    That is the path's own directory, the directory of each symbolic link on the way (a ConfigMap swaps the link
    of a directory) and the real file's. A directory that does not exist is replaced by its nearest ancestor.
    """
    found = [_nearest_existing(path.absolute().parent)]
    rest = list(path.absolute().parts[1:])
    at = Path("/")
    links = 0
    while rest:
        step = at / rest.pop(0)
        try:
            target = os.readlink(step)  # noqa: PTH115 - the text as it stands, which may be relative
        except OSError:
            at = at.parent if step.name == ".." else step
            continue
        links += 1
        if links > MAX_LINKS:
            break
        found.append(at)
        parts = Path(target).parts
        if target.startswith("/"):
            at, parts = Path("/"), parts[1:]
        rest = [*parts, *rest]
    else:
        found.append(_nearest_existing(at.parent))
    return tuple(dict.fromkeys(found))


def _nearest_existing(directory: Path) -> Path:
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return directory


async def at_rest(look: Callable[[], FileIdentity | None], pause: Callable[[], Awaitable[None]]) -> FileIdentity | None:
    """What `look` shows once two looks in a row, a `pause` apart, agree, or after `MAX_LOOKS`."""
    previous = look()
    for _ in range(MAX_LOOKS):
        await pause()
        current = look()
        if settled(previous, current):
            break
        previous = current
    return previous


class _Stop:
    """The caller's event as awatch wants it: awatch sets the event it is given when it is cancelled."""

    def __init__(self, outer: asyncio.Event) -> None:
        self._outer = outer
        self._cancelled = False

    def is_set(self) -> bool:
        return self._cancelled or self._outer.is_set()

    def set(self) -> None:
        self._cancelled = True


async def changes(
    path: Path,
    stop: asyncio.Event,
    *,
    known: FileIdentity | None,
    settle_s: float = SETTLE_S,
    look_every_s: float = LOOK_EVERY_S,
) -> AsyncGenerator[None, None]:
    """Yields each time the file has changed and come to rest, until `stop` is set.

    `known` is the identity of what was last read, None for no file; a change since then is found by the first
    look, which waits for no event. A file that vanished counts as a change. Close the generator
    (`contextlib.aclosing`) when leaving early: it holds a watch and its thread.
    """
    while not stop.is_set():
        directories = watched_directories(path)
        async with aclosing(_hints(directories, stop, look_every_s)) as hints:
            async for _ in hints:
                if identify(path) != known:
                    found = await at_rest(lambda: identify(path), lambda: _pause(stop, settle_s))
                    if stop.is_set():
                        return
                    if found != known:
                        known = found
                        yield
                if watched_directories(path) != directories:
                    break


async def _hints(directories: tuple[Path, ...], stop: asyncio.Event, look_every_s: float) -> AsyncGenerator[None, None]:
    """Yields at once, when something happened in the directories, and every so often without."""
    yield
    timeout_ms = max(1, round(look_every_s * 1000))
    try:
        async with aclosing(
            awatch(
                *directories,
                watch_filter=None,
                debounce=200,
                step=50,
                stop_event=_Stop(stop),
                rust_timeout=timeout_ms,
                yield_on_timeout=True,
                recursive=False,
            )
        ) as batches:
            async for _ in batches:
                yield
    except (OSError, RuntimeError):
        # No watch to be had: a directory vanished, or the system's limit of watches is reached.
        await _pause(stop, look_every_s)
        yield


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but no longer than until `stop` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
