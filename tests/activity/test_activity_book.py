"""One row for each request, with its tokens, whichever of the two is known first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from swapd.activity.book import COUNT_PATIENCE_S, MAX_UNCOUNTED, Book, Counts
from swapd.activity.shapes import Row

COUNTS = Counts(9, 4, 3)


class Written:
    """Stands in for the store."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.closed = False

    def write(self, row: Row) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.closed = True

    def tokens(self) -> list[tuple[str, int | None]]:
        return [(row.request_id, row.completion_tokens) for row in self.rows]


class Kept:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.written = Written()
        self.book = Book(self.written, lambda: self.now_s)  # type: ignore[arg-type]

    def end(self, request_id: str = "r1", *, ran: bool = True) -> None:
        self.book.ended(
            request_id,
            Row(ended_at=1.0, request_id=request_id, model="m", client="c", endpoint="/e", status=200, total_s=1.0),
            ran=ran,
        )


@contextmanager
def kept() -> Iterator[Kept]:
    found = Kept()
    with found.book:
        yield found
    assert found.written.closed


def test_a_count_before_the_end_and_one_after_it_come_to_the_same() -> None:
    with kept() as one:
        one.book.began("early")
        one.book.counted("early", COUNTS)
        one.end("early")
        one.book.began("late")
        one.end("late")
        assert one.written.tokens() == [("early", 3)]
        one.book.counted("late", COUNTS)
        first, second = one.written.rows
        assert (second.prompt_tokens, second.cached_tokens, second.completion_tokens) == (9, 4, 3)
        assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (9, 4, 3)


def test_what_never_ran_is_written_at_once_and_what_is_no_row_not_at_all() -> None:
    with kept() as one:
        one.book.began("refused")
        one.end("refused", ran=False)
        one.book.began("status")
        one.book.ended("status", None, ran=False)
        assert one.written.tokens() == [("refused", None)]


def test_a_count_that_does_not_come_is_given_up() -> None:
    with kept() as one:
        one.book.began("r1")
        one.end("r1")
        one.now_s += COUNT_PATIENCE_S
        one.book.began("r2")
        one.end("r2")
        assert one.written.tokens() == [("r1", None)]
        one.book.counted("r1", COUNTS)
    assert one.written.tokens() == [("r1", None), ("r2", None)]


def test_a_late_count_does_not_reach_a_later_request_of_the_same_id() -> None:
    with kept() as one:
        one.book.began("same")
        one.end("same")
        one.now_s += COUNT_PATIENCE_S
        one.book.began("other")
        one.end("other", ran=False)
        one.book.counted("same", COUNTS)
        one.book.began("same")
        one.end("same")
    assert one.written.tokens() == [("same", None), ("other", None), ("same", None)]


def test_two_uncounted_requests_of_one_id_are_two_rows() -> None:
    with kept() as one:
        for _ in range(2):
            one.book.began("same")
            one.end("same")
        one.book.counted("same", COUNTS)
        assert one.written.tokens() == [("same", None), ("same", 3)]


def test_what_waits_for_counts_is_bounded() -> None:
    with kept() as one:
        for number in range(MAX_UNCOUNTED + 10):
            one.book.began(str(number))
            one.end(str(number))
        assert len(one.written.rows) == 10
    assert len(one.written.rows) == MAX_UNCOUNTED + 10
