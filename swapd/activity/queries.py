"""The table of ended requests in SQL: its schema, and what is written to it and read from it.

Owns every statement. Must be called by whoever owns the connection; never opens one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from swapd.activity.shapes import Activity, Grouping, Row, Usage, UsageRow

VERSION = 1
"""Of the schema, kept as `user_version`."""
MAX_GROUPS = 1_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS activity (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ended_at REAL NOT NULL,
    request_id TEXT NOT NULL,
    model TEXT NOT NULL,
    client TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    status INTEGER NOT NULL,
    prompt_tokens INTEGER,
    cached_tokens INTEGER,
    completion_tokens INTEGER,
    waited_s REAL,
    first_token_s REAL,
    total_s REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS activity_ended_at ON activity (ended_at);
"""
_COLUMNS = Row.__struct_fields__
_INSERT = f"INSERT INTO activity ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_GROUPS: dict[Grouping, str] = {
    "model": "model",
    "key": "client",
    "day": "date(ended_at, 'unixepoch', 'localtime')",
}


def create(connection: sqlite3.Connection) -> None:
    """Make what is missing in a new file."""
    connection.executescript(f"{_SCHEMA} PRAGMA user_version = {VERSION};")


def version(connection: sqlite3.Connection) -> int:
    """0 for a new file."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def is_sound(connection: sqlite3.Connection) -> bool:
    """Reads the whole file."""
    return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))


def insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    connection.executemany(_INSERT, [msgspec.structs.astuple(row) for row in rows])


def prune(connection: sqlite3.Connection, *, oldest_at: float, max_rows: int) -> None:
    """Delete what ended before the Unix time `oldest_at`, and all but the newest `max_rows`."""
    connection.execute("DELETE FROM activity WHERE ended_at < ?", (oldest_at,))
    connection.execute("DELETE FROM activity WHERE id <= (SELECT max(id) FROM activity) - ?", (max_rows,))


def newest(connection: sqlite3.Connection, limit: int) -> Activity:
    query = f"SELECT {', '.join(_COLUMNS)} FROM activity ORDER BY id DESC LIMIT ?"  # noqa: S608 - our own names
    found = connection.execute(query, (limit,))
    return Activity(rows=tuple(Row(**dict(zip(_COLUMNS, values, strict=True))) for values in found))


def usage(connection: sqlite3.Connection, by: Grouping, since: float) -> Usage:
    """Sums over what has ended since the Unix time `since`. A day is one of the machine's own time zone."""
    order = "name" if by == "day" else "requests DESC, name"
    query = f"""
        SELECT {_GROUPS[by]} AS name, count(*) AS requests,
               sum(status >= 400 AND status <> 499), sum(status = 499),
               coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), coalesce(sum(completion_tokens), 0),
               avg(waited_s), avg(first_token_s), avg(total_s)
        FROM activity WHERE ended_at >= ? GROUP BY name ORDER BY {order} LIMIT {MAX_GROUPS}
    """  # noqa: S608 - our own names
    fields = UsageRow.__struct_fields__
    found = connection.execute(query, (since,))
    return Usage(by=by, since=since, rows=tuple(UsageRow(**dict(zip(fields, values, strict=True))) for values in found))
