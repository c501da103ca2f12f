"""What was learned outlives the daemon, and a file that cannot be read costs no more than what was in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backends.base import DeviceMemory, ProbeResult
from swapd.pool.learned import FILE_NAME, MAX_ROWS, Lesson, Store, read_lessons
from swapd.pool.measure import Surplus

LESSON = Lesson(surplus=Surplus(8, -16), measured_bytes={"RAM": 5, "CUDA0": 7}, probed_bytes={"RAM": 4})
ANSWER = ProbeResult((DeviceMemory("RAM", 1, 2, 3),), 4, "llama.cpp's own account")


def reopened(path: Path, store: Store) -> Store:
    store.close()
    return Store.opened(path)


def test_what_is_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    store = Store.opened(path)
    store.learn("a", Lesson())
    store.learn("a", LESSON)
    store.keep_probe("p", ANSWER)
    store.keep_paused("CUDA0", paused=True)
    store.keep_paused("CUDA1", paused=True)
    store.keep_paused("CUDA1", paused=False)
    again = reopened(path, store)
    assert again.lesson("a") == LESSON
    assert again.probe("p") == ANSWER
    assert again.paused() == {"CUDA0"}
    again.close()


def test_it_is_known_at_once_whether_or_not_there_is_a_file() -> None:
    store = Store.opened(None)
    store.learn("a", LESSON)
    assert store.lesson("a") == LESSON
    assert store.lesson("b") == Lesson()
    assert store.probe("b") is None
    store.close()


def test_a_file_that_is_no_database_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"this is not SQLite, but long enough to be looked at twice" * 20)
    store = Store.opened(path)
    store.learn("a", LESSON)
    again = reopened(path, store)
    assert again.lesson("a") == LESSON
    assert path.with_suffix(".unreadable").read_bytes().startswith(b"this is not SQLite")
    again.close()


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 99",
        "INSERT OR REPLACE INTO lessons VALUES ('a', 'no lesson', 1.0)",
        "DROP TABLE lessons; CREATE TABLE lessons (wrong TEXT)",
    ],
)
def test_so_is_one_of_another_version_or_with_nonsense_in_it(tmp_path: Path, statement: str) -> None:
    path = tmp_path / FILE_NAME
    Store.opened(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)
    store = Store.opened(path)
    assert store.lesson("a") == Lesson()
    assert path.with_suffix(".unreadable").exists()
    store.close()


def test_where_no_file_can_be_written_nothing_is_kept_and_nothing_breaks(tmp_path: Path) -> None:
    store = Store.opened(tmp_path / "nowhere" / FILE_NAME)
    store.learn("a", LESSON)
    assert store.lesson("a") == LESSON
    store.close()
    assert not (tmp_path / "nowhere").exists()


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    Store.opened(path).close()
    value = b'{"measured_bytes": {"RAM": 1}}'
    with closing(sqlite3.connect(path)) as connection, connection:
        rows = ((f"k{number}", value, float(number)) for number in range(MAX_ROWS + 3))
        connection.executemany("INSERT INTO lessons VALUES (?, ?, ?)", rows)
    store = Store.opened(path)
    known = [store.lesson(f"k{number}") != Lesson() for number in range(5)]
    assert known == [False, False, False, True, True]
    store.close()


def test_others_may_read_the_lessons_while_the_daemon_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    store = Store.opened(path)
    store.learn("a", LESSON)
    store.close()
    assert read_lessons(path) == {"a": LESSON}
    assert read_lessons(tmp_path / "nowhere") == {}
    path.write_bytes(b"damaged")
    assert read_lessons(path) == {}
