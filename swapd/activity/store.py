"""The SQLite file of ended requests, and the one thread that may touch it.

Owns the connection and the queue before it. Must never keep the event loop waiting, nor let a full disk or a damaged
file reach a request: what cannot be written is dropped, counted, and told of in one line until it can be again.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from swapd.activity import queries
from swapd.activity.shapes import Row
from swapd.config.schema import Activity as Bounds
from swapd.errors import ActivityUnavailableError

log = structlog.get_logger(__name__)

FILE_NAME = "activity.sqlite"
ASIDE_SUFFIX = ".damaged"
MAX_QUEUED = 10_000
"""Rows and questions that may wait for the thread."""
BATCH_ROWS = 1_000
COMMIT_EVERY_S = 1.0
"""How long a row may wait for others to be written with it."""
CLOSE_S = 5.0
"""For what is queued at the end; a disk that hangs must not keep the daemon."""
ANSWER_S = 30.0
_BUSY_S = 5.0
"""How long another program that reads the file may lock it."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Question:
    ask: Callable[[sqlite3.Connection], Any]
    answer: Future[Any]


class _DamagedError(sqlite3.DatabaseError):
    """The file is there and is not what this version can go on with."""


class Store:
    """`bounds` gives what the configuration allows now; `on_dropped` hears of rows that are lost, in any thread.

    A `path` of None keeps everything in memory.
    """

    def __init__(self, path: Path | None, bounds: Callable[[], Bounds], on_dropped: Callable[[int], None]) -> None:
        self._path = path
        self._bounds = bounds
        self._on_dropped = on_dropped
        self._queue: queue.Queue[Row | _Question | None] = queue.Queue(MAX_QUEUED)
        self._connection: sqlite3.Connection | None = None
        self._checked = False
        self._lock = threading.Lock()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="activity", daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        """Have a row written soon. Never waits and never raises."""
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._drop(1, f"{MAX_QUEUED} of them wait to be written")

    async def ask(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """What `question` finds once all earlier rows are written. Raises `ActivityUnavailableError`."""
        answer: Future[Answer] = Future()
        try:
            self._queue.put_nowait(_Question(question, answer))
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.wrap_future(answer)
        except (queue.Full, TimeoutError):
            raise ActivityUnavailableError("the disk of the state directory is too slow", retry_after_s=30.0) from None
        except (sqlite3.Error, OSError) as error:
            raise ActivityUnavailableError(f"what was kept of past requests cannot be read: {error}") from None

    def close(self) -> None:
        """Write what is queued and end the thread. Waits for it, but not for ever."""
        deadline_s = time.monotonic() + CLOSE_S
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _drop(self, count: int, why: str) -> None:
        self._on_dropped(count)
        with self._lock:
            is_news, self._failing = not self._failing, True
        if is_news:
            log.error("activity is not written, only counted as dropped", why=why, file=str(self._path))

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        item = self._queue.get()
        while item is not None:
            if isinstance(item, Row):
                item = self._write_from(item)
            else:
                self._answer(item)
                item = self._queue.get()
        self._disconnect()

    def _write_from(self, first: Row) -> Row | _Question | None:
        """Write a row and those that follow it within a moment. Returns what came behind them."""
        rows = [first]
        deadline_s = time.monotonic() + COMMIT_EVERY_S
        while len(rows) < BATCH_ROWS:
            try:
                item = self._queue.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                break
            if not isinstance(item, Row):
                self._write(rows)
                return item
            rows.append(item)
        self._write(rows)
        return self._queue.get()

    def _write(self, rows: Sequence[Row]) -> None:
        try:
            try:
                self._commit(rows)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._move_aside(error)
                self._commit(rows)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            self._drop(len(rows), str(error))
            return
        with self._lock:
            is_news, self._failing = self._failing, False
        if is_news:
            log.info("activity is written again")

    def _commit(self, rows: Sequence[Row]) -> None:
        bounds = self._bounds()
        with self._connected() as connection:
            if bounds.max_rows:
                queries.insert(connection, rows)
            queries.prune(connection, oldest_at=time.time() - bounds.keep_s, max_rows=bounds.max_rows)

    def _answer(self, question: _Question) -> None:
        if not question.answer.set_running_or_notify_cancel():
            return
        try:
            question.answer.set_result(question.ask(self._connected()))
        except Exception as error:
            question.answer.set_exception(error)
            if isinstance(error, sqlite3.DatabaseError) and _is_damage(error):
                with contextlib.suppress(OSError):
                    self._move_aside(error)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._opened()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._move_aside(error)
                self._connection = self._opened()
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:" if self._path is None else self._path, timeout=_BUSY_S)
        try:
            if not self._checked:
                _check(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            queries.create(connection)
        except BaseException:
            connection.close()
            raise
        self._checked = True
        return connection

    def _move_aside(self, error: Exception) -> None:
        """Begin anew beside a file that cannot be used; an earlier one that was moved is overwritten."""
        self._disconnect()
        if self._path is None:
            return
        kept = f"{self._path}{ASIDE_SUFFIX}"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").replace(f"{kept}{suffix}")
        log.error("activity file is damaged and was moved aside", why=str(error), file=kept)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _check(connection: sqlite3.Connection) -> None:
    found = queries.version(connection)
    if found not in (0, queries.VERSION):
        raise _DamagedError(f"it has version {found}, not {queries.VERSION}")
    if not queries.is_sound(connection):
        raise _DamagedError("its pages contradict each other")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    if isinstance(error, _DamagedError):
        return True
    # Extended codes have the plain one in their lowest byte.
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
