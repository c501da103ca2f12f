"""The guard's questions to a program that serves: when they are asked, and what an answer means."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.address import UnixAddress
from backends.guard.watch import EVERY_S, NEVER_S, Watch

BUSY, IDLE = b'[{"is_processing":true}]', b'[{"is_processing":false}]'


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """A server that gives these bodies, one to each connection, and notes what it is asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            for body in answers:
                connection, _ = server.accept()
                with connection:
                    asked.append(connection.recv(4096).partition(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body[:5])
                    connection.sendall(body[5:])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def selector() -> Iterator[selectors.DefaultSelector]:
    with selectors.DefaultSelector() as one:
        yield one


def until_answered(watch: Watch, selector: selectors.BaseSelector) -> None:
    while selector.get_map():
        events = selector.select(5)
        assert events
        for key, _ in events:
            key.data()


def test_it_asks_while_something_runs_and_then_no_more(tmp_path: Path, selector: selectors.DefaultSelector) -> None:
    notes: list[int] = []
    path = tmp_path / "s"
    with answering(path, BUSY, IDLE) as asked:
        watch = Watch(UnixAddress(path), "/slots", '"is_processing":true', selector, lambda: notes.append(1))
        watch.ask(100.0)
        assert not selector.get_map(), "nothing has said that something runs"
        watch.rouse()
        watch.ask(100.0)
        until_answered(watch, selector)
        assert len(notes) == 1
        due_s = watch.next_s
        assert due_s != NEVER_S
        watch.ask(due_s - EVERY_S / 2)
        assert not selector.get_map(), "not yet"
        watch.ask(due_s)
        until_answered(watch, selector)
        assert (len(notes), watch.next_s) == (2, NEVER_S)
    assert asked == [b"GET /slots HTTP/1.1"] * 2


def test_what_cannot_be_asked_is_no_sign_of_work_and_is_asked_again(
    tmp_path: Path, selector: selectors.DefaultSelector
) -> None:
    notes: list[int] = []
    watch = Watch(UnixAddress(tmp_path / "none"), "/slots", "true", selector, lambda: notes.append(1))
    watch.rouse()
    watch.ask(10.0)
    assert (notes, watch.next_s) == ([], 10.0 + EVERY_S)


def test_a_question_without_an_answer_is_waited_for_and_left_at_the_end(
    tmp_path: Path, selector: selectors.DefaultSelector
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        watch = Watch(UnixAddress(path), "/slots", "true", selector, lambda: pytest.fail("there was no answer"))
        watch.rouse()
        watch.ask(10.0)
        assert watch.next_s == NEVER_S
        watch.ask(1e9)
        assert len(selector.get_map()) == 1
        watch.close()
        assert not selector.get_map()


def test_without_a_path_it_never_asks(tmp_path: Path, selector: selectors.DefaultSelector) -> None:
    watch = Watch(UnixAddress(tmp_path / "s"), None, "", selector, lambda: None)
    watch.rouse()
    assert watch.next_s == NEVER_S
