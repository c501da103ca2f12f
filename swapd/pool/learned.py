"""What was learned of models, kept over restarts: corrections, measurements, probes' answers, devices handed over.

Owns a small SQLite file in the state directory and its copy in memory. Reads are of the copy; writes go to the file
from one thread of their own. A file that cannot be used costs what was learned, never the daemon.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import structlog

from backends.base import ProbeResult
from swapd.pool.measure import Surplus

log = structlog.get_logger()

FILE_NAME = "learned.sqlite"
MAX_ROWS = 2_000
"""Of each kind; the oldest are forgotten when the file is opened."""
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS lessons (key TEXT PRIMARY KEY, value BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS probes (key TEXT PRIMARY KEY, value BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS paused (key TEXT PRIMARY KEY, value BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
"""


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one model as it is set up: of its file, settings and environment."""

    surplus: Surplus = Surplus()
    measured_bytes: dict[str, int] = {}
    """The most its last worker was seen to take, by device."""
    probed_bytes: dict[str, int] = {}
    """What llama.cpp itself said that it would take, by device, for the placement it was last asked for."""
    load_s: float | None = None
    """What its loads usually take."""


class Store:
    """Opened with `opened`; `close` waits until all is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="learned")
        self._lessons: dict[str, Lesson] = {}
        self._probes: dict[str, ProbeResult] = {}
        self._paused: set[str] = set()

    @classmethod
    def opened(cls, path: Path | None) -> Store:
        """What the file holds; without one, or if it cannot be read, nothing. Blocks."""
        store = cls(path)
        if path is not None:
            try:
                store._read(path)
            except (sqlite3.Error, msgspec.MsgspecError, OSError) as error:
                log.warning("what was learned is lost: its file cannot be read", path=str(path), error=str(error))
                store._start_anew(path)
        return store

    def lesson(self, key: str) -> Lesson:
        return self._lessons.get(key, _NOTHING)

    def learn(self, key: str, lesson: Lesson) -> None:
        self._lessons[key] = lesson
        self._write("lessons", key, msgspec.json.encode(lesson))

    def probe(self, key: str) -> ProbeResult | None:
        return self._probes.get(key)

    def keep_probe(self, key: str, result: ProbeResult) -> None:
        self._probes[key] = result
        self._write("probes", key, msgspec.json.encode(result))

    def paused(self) -> frozenset[str]:
        """Devices that were handed over and not taken back."""
        return frozenset(self._paused)

    def keep_paused(self, device: str, *, paused: bool) -> None:
        if paused:
            self._paused.add(device)
            self._write("paused", device, b"")
        else:
            self._paused.discard(device)
            self._forget("paused", device)

    def close(self) -> None:
        self._writer.shutdown(wait=True)

    # -- the file ----------------------------------------------------------------------------------------------

    def _read(self, path: Path) -> None:
        with closing(_connect(path)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}, this swapd writes {_VERSION}")
            with connection:
                connection.executescript(_SCHEMA + f"PRAGMA user_version = {_VERSION};")
                for table in ("lessons", "probes"):
                    oldest = f"SELECT key FROM {table} ORDER BY at DESC LIMIT -1 OFFSET ?"  # noqa: S608 - our names
                    connection.execute(f"DELETE FROM {table} WHERE key IN ({oldest})", (MAX_ROWS,))  # noqa: S608
            self._lessons = {
                key: msgspec.json.decode(value, type=Lesson) for key, value in _rows(connection, "lessons")
            }
            self._probes = {
                key: msgspec.json.decode(value, type=ProbeResult) for key, value in _rows(connection, "probes")
            }
            self._paused = {key for key, _ in _rows(connection, "paused")}

    def _start_anew(self, path: Path) -> None:
        """Put the file that cannot be used aside, once, and begin another."""
        try:
            path.replace(path.with_suffix(".unreadable"))
            self._read(path)
        except (sqlite3.Error, OSError) as error:
            log.warning("what is learned will not be kept", path=str(path), error=str(error))
            self._path = None

    def _write(self, table: str, key: str, value: bytes) -> None:
        statement = f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)"  # noqa: S608 - our names
        self._later(lambda connection: connection.execute(statement, (key, value, time.time())))

    def _forget(self, table: str, key: str) -> None:
        statement = f"DELETE FROM {table} WHERE key = ?"  # noqa: S608 - our names
        self._later(lambda connection: connection.execute(statement, (key,)))

    def _later(self, change: Callable[[sqlite3.Connection], object]) -> None:
        path = self._path
        if path is None:
            return

        def run() -> None:
            try:
                with closing(_connect(path)) as connection, connection:
                    change(connection)
            except sqlite3.Error as error:
                log.warning("what was learned could not be written", path=str(path), error=str(error))

        self._writer.submit(run)


_NOTHING = Lesson()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0)


def _rows(connection: sqlite3.Connection, table: str) -> list[tuple[str, bytes]]:
    return connection.execute(f"SELECT key, value FROM {table}").fetchall()  # noqa: S608 - our names


def read_lessons(path: Path) -> dict[str, Lesson]:
    """The lessons in a file that a daemon may be using, or none. Never writes."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)) as connection:
            return {key: msgspec.json.decode(value, type=Lesson) for key, value in _rows(connection, "lessons")}
    except (sqlite3.Error, msgspec.MsgspecError):
        return {}
