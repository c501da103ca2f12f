"""The journal tells of each request once, with its tokens if they come, and of nobody by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from backends.control import Usage
from swapd.pool.journal import COUNT_PATIENCE_S, MAX_UNCOUNTED, Journal
from swapd.pool.lease import Ticket
from swapd.pool.status import RequestEnded


class Told:
    """A journal with a clock that only the test moves, and what a follower has heard."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.journal = Journal(lambda: self.now_s, lambda: 1_000_000.0 + self.now_s)
        self._feed: AsyncGenerator[RequestEnded, None] = self.journal.follow()

    async def start(self) -> Told:
        self._next = asyncio.ensure_future(anext(self._feed))
        await asyncio.sleep(0)
        return self

    async def heard(self) -> list[RequestEnded]:
        found = []
        while True:
            for _ in range(3):
                await asyncio.sleep(0)
            if not self._next.done():
                return found
            found.append(self._next.result())
            self._next = asyncio.ensure_future(anext(self._feed))

    def serve(self, request_id: str, client: str = "alice", *, service_s: float = 2.0) -> None:
        self.journal.arrived(request_id, Ticket(request_id, "tiny", client, priority=1))
        self.now_s += 0.5
        self.journal.granted(request_id, 0.5)
        self.now_s += service_s
        self.journal.left(request_id, "finished")


async def test_a_request_is_told_of_when_it_has_ended_and_is_counted() -> None:
    told = await Told().start()
    told.serve("r1")
    assert await told.heard() == []
    assert told.journal.counted(Usage("r1", 9, 4, 3)) == Ticket("r1", "tiny", "alice", priority=1)
    (ended,) = await told.heard()
    assert (ended.arrived_at, ended.waited_s, ended.service_s) == (1_000_100.0, 0.5, 2.0)
    assert (ended.model, ended.priority, ended.outcome) == ("tiny", 1, "finished")
    assert (ended.prompt_tokens, ended.cached_tokens, ended.completion_tokens) == (9, 4, 3)


async def test_a_count_may_come_before_the_end_and_is_booked_once() -> None:
    told = await Told().start()
    told.journal.arrived("r1", Ticket("r1", "tiny", "alice"))
    told.journal.granted("r1", 0.0)
    assert told.journal.counted(Usage("r1", 9, 0, 3)) is not None
    assert told.journal.counted(Usage("r1", 9, 0, 3)) is None
    assert await told.heard() == []
    told.journal.left("r1", "cancelled")
    (ended,) = await told.heard()
    assert (ended.outcome, ended.completion_tokens) == ("cancelled", 3)
    assert told.journal.counted(Usage("r1", 9, 0, 3)) is None


async def test_a_request_that_was_given_no_place_is_told_of_at_once() -> None:
    told = await Told().start()
    told.journal.arrived("r1", Ticket("r1", "tiny", "alice"))
    told.journal.left("r1", "failed")
    (ended,) = await told.heard()
    assert (ended.waited_s, ended.service_s, ended.prompt_tokens) == (None, None, None)


async def test_a_count_that_never_comes_is_not_waited_for_for_ever() -> None:
    told = await Told().start()
    told.serve("r1")
    told.now_s += COUNT_PATIENCE_S
    told.serve("r2")
    (ended,) = await told.heard()
    assert ended.prompt_tokens is None
    assert ended.service_s == 2.0


async def test_what_is_kept_is_bounded() -> None:
    told = await Told().start()
    for number in range(MAX_UNCOUNTED + 5):
        told.serve(f"r{number}", service_s=0.0001)
        told.now_s -= 0.5
    assert len(told.journal._uncounted) == MAX_UNCOUNTED


async def test_clients_are_told_apart_but_not_by_name_and_otherwise_after_a_restart() -> None:
    names = []
    for _ in range(2):
        told = await Told().start()
        for request_id, client in (("r1", "192.168.1.7"), ("r2", "key-0123"), ("r3", "192.168.1.7")):
            told.serve(request_id, client)
            told.journal.counted(Usage(request_id, 1, 0, 1))
        names.append([ended.client for ended in await told.heard()])
    for first, second, third in names:
        assert first == third != second
    assert names[0][0] != names[1][0]
    assert "192" not in str(names[0][:1])


async def test_who_follows_hears_only_what_ends_from_then_on() -> None:
    told = Told()
    told.serve("r1")
    told.journal.counted(Usage("r1", 1, 0, 1))
    await told.start()
    told.serve("r2", "bob")
    told.journal.counted(Usage("r2", 2, 0, 1))
    assert [ended.prompt_tokens for ended in await told.heard()] == [2]
