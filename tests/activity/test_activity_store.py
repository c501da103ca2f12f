"""The file of ended requests: bounded, kept over restarts, and never in anybody's way."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from swapd.activity import queries, store
from swapd.activity.shapes import Row
from swapd.activity.store import ASIDE_SUFFIX, FILE_NAME, Store
from swapd.config.schema import Activity as Bounds
from swapd.errors import ActivityUnavailableError

NOW = time.time()


def row(request_id: str = "r1", *, ended_at: float = NOW, **fields: object) -> Row:
    known: dict[str, object] = {"model": "m", "client": "c", "endpoint": "/v1/chat/completions", "status": 200}
    return Row(ended_at=ended_at, request_id=request_id, total_s=1.0, **{**known, **fields})  # type: ignore[arg-type]


class Kept:
    """A store, and how many rows it has dropped."""

    def __init__(self, path: Path | None, bounds: Bounds) -> None:
        self.dropped = 0
        self.bounds = bounds
        self.store = Store(path, lambda: self.bounds, self._count)

    def _count(self, count: int) -> None:
        self.dropped += count

    async def ids(self) -> list[str]:
        """Of all rows, the newest first."""
        found = await self.store.ask(partial(queries.newest, limit=100_000))
        return [one.request_id for one in found.rows]

    async def pragma(self, text: str) -> None:
        await self.store.ask(lambda connection: connection.execute(f"PRAGMA {text}").fetchall())


@contextmanager
def kept(path: Path | None, bounds: Bounds | None = None) -> Iterator[Kept]:
    found = Kept(path, bounds or Bounds())
    try:
        yield found
    finally:
        found.store.close()


def names_in(directory: Path) -> list[str]:
    return [file.name for file in directory.iterdir()]


async def test_rows_survive_a_restart_and_leave_one_file(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    first = row("r1", prompt_tokens=9, cached_tokens=4, completion_tokens=3, waited_s=0.5, first_token_s=0.7)
    with kept(path) as one:
        one.store.write(first)
        one.store.write(row("r2", status=503))
    with kept(path) as two:
        found = await two.store.ask(partial(queries.newest, limit=10))
        two.store.write(row("r3"))
        assert found.rows == (row("r2", status=503), first)
        assert await two.ids() == ["r3", "r2", "r1"]
        assert two.dropped == 0
    assert names_in(tmp_path) == [FILE_NAME]


async def test_old_rows_and_too_many_rows_go(tmp_path: Path) -> None:
    with kept(tmp_path / FILE_NAME, Bounds(keep_s=3600.0, max_rows=3)) as one:
        one.store.write(row("old", ended_at=NOW - 3700))
        for number in range(5):
            one.store.write(row(f"r{number}"))
        assert await one.ids() == ["r4", "r3", "r2"]
        one.bounds = Bounds(max_rows=0)
        one.store.write(row("r5"))
        assert await one.ids() == []
        assert one.dropped == 0


async def test_a_full_disk_drops_rows_says_so_once_and_recovers(tmp_path: Path) -> None:
    with kept(tmp_path / FILE_NAME) as one, capture_logs() as logs:
        one.store.write(row("before"))
        assert await one.ids() == ["before"]
        # SQLite's own limit gives the very error of a full disk.
        for number in range(3):
            await one.pragma("max_page_count = 1")
            one.store.write(row(f"lost{number}", client="x" * 100_000))
            # A question has the row written first; a failed write begins a new connection, without that limit.
            assert await one.ids() == ["before"]
        assert one.dropped == 3
        one.store.write(row("after"))
        assert await one.ids() == ["after", "before"]
        assert one.dropped == 3
    told = [(line["log_level"], line["event"]) for line in logs]
    assert told == [
        ("error", "activity is not written, only counted as dropped"),
        ("info", "activity is written again"),
    ]
    assert "full" in logs[0]["why"]


@pytest.mark.parametrize("damage", ["no database", "a torn page", "another version"])
async def test_a_damaged_file_is_moved_aside_and_the_next_begins_empty(tmp_path: Path, damage: str) -> None:
    path = tmp_path / FILE_NAME
    if damage == "no database":
        path.write_bytes(b"these are not the pages you are looking for\n" * 100)
    else:
        with kept(path) as before:
            for number in range(500):
                before.store.write(row(f"r{number}"))
        if damage == "another version":
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA user_version = 99")
            connection.close()
        else:
            data = bytearray(path.read_bytes())
            data[4096 * 2 : 4096 * 6] = b"\xa5" * 4096 * 4
            path.write_bytes(data)
    damaged = path.read_bytes()
    with capture_logs() as logs, kept(path) as one:
        one.store.write(row("new"))
        assert await one.ids() == ["new"]
        assert one.dropped == 0
    assert [line["event"] for line in logs] == ["activity file is damaged and was moved aside"]
    assert path.with_name(FILE_NAME + ASIDE_SUFFIX).read_bytes() == damaged


async def test_a_directory_that_cannot_be_written_drops_rows_and_refuses_questions(tmp_path: Path) -> None:
    with kept(tmp_path / "gone" / FILE_NAME) as one:
        one.store.write(row())
        with pytest.raises(ActivityUnavailableError, match="unable to open"):
            await one.ids()
        assert one.dropped == 1
        (tmp_path / "gone").mkdir()
        one.store.write(row("later"))
        assert await one.ids() == ["later"]


def until_there_is_room(items: queue.Queue[object]) -> None:
    with items.not_full:
        assert items.not_full.wait_for(lambda: len(items.queue) < items.maxsize, 20)


async def test_a_disk_that_hangs_costs_rows_beyond_the_queue_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_QUEUED", 4)
    go_on, started = threading.Event(), threading.Event()

    def hang(_connection: sqlite3.Connection) -> None:
        started.set()
        go_on.wait(20)

    with kept(None) as one:
        hung = asyncio.create_task(one.store.ask(hang))
        await asyncio.to_thread(started.wait, 20)
        begun_s = time.perf_counter()
        for number in range(10):
            one.store.write(row(f"r{number}"))
        assert time.perf_counter() - begun_s < 1.0
        assert one.dropped == 6
        with pytest.raises(ActivityUnavailableError, match="too slow"):
            await one.ids()
        go_on.set()
        await hung
        await asyncio.to_thread(until_there_is_room, one.store._queue)
        assert await one.ids() == ["r3", "r2", "r1", "r0"]


async def test_usage_sums_by_model_key_and_day() -> None:
    noon = time.mktime((2026, 3, 5, 12, 0, 0, 0, 0, -1))
    rows = [
        row("1", ended_at=noon, model="a", prompt_tokens=10, cached_tokens=4, completion_tokens=5, waited_s=1.0),
        row("2", ended_at=noon, model="a", prompt_tokens=20, cached_tokens=0, completion_tokens=7, waited_s=3.0),
        row("3", ended_at=noon, model="a", client="d", status=499),
        row("4", ended_at=noon + 86400, model="b", client="d", status=503, first_token_s=0.5),
    ]
    with kept(None, Bounds(keep_s=1e9)) as one:
        for each in rows:
            one.store.write(each)
        by_model = await one.store.ask(partial(queries.usage, by="model", since=0.0))
        by_key = await one.store.ask(partial(queries.usage, by="key", since=0.0))
        by_day = await one.store.ask(partial(queries.usage, by="day", since=0.0))
        late = await one.store.ask(partial(queries.usage, by="day", since=noon + 1))
    a, b = by_model.rows
    assert (a.name, a.requests, a.failed, a.cancelled) == ("a", 3, 0, 1)
    assert (a.prompt_tokens, a.cached_tokens, a.completion_tokens) == (30, 4, 12)
    assert (a.waited_s, a.first_token_s, a.total_s) == (2.0, None, 1.0)
    assert (b.name, b.failed, b.prompt_tokens, b.waited_s, b.first_token_s) == ("b", 1, 0, None, 0.5)
    assert [(one_.name, one_.requests) for one_ in by_key.rows] == [("c", 2), ("d", 2)]
    assert [(one_.name, one_.requests) for one_ in by_day.rows] == [("2026-03-05", 3), ("2026-03-06", 1)]
    assert [one_.name for one_ in late.rows] == ["2026-03-06"]
