"""What became of each request, for counting its tokens and for people who record traces. Never prompts, never keys.

Owns the notes of requests that are under way or not counted yet. A client's name leaves here as a hash that only says
who is the same client while this daemon runs.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from backends.control import Usage
from swapd.pool.lease import Ticket
from swapd.pool.ring import Ring
from swapd.pool.status import Outcome, RequestEnded

MAX_UNCOUNTED = 4_096
"""Requests that have ended and whose tokens can still be booked: the count may come a moment after the end."""

COUNT_PATIENCE_S = 60.0
"""After which a request is told of without its tokens, and they are no longer booked."""

FOLLOWED = 1_000
"""Ended requests that a reader of the feed may be behind."""


@dataclass(slots=True)
class _Note:
    ticket: Ticket
    arrived_at: float
    """Unix time."""
    waited_s: float | None = None
    granted_at_s: float = 0.0
    ended_at_s: float = 0.0
    outcome: Outcome = "finished"
    service_s: float | None = None
    usage: Usage | None = None


class Journal:
    """`now_s` is the pool's clock, `unix_now` that of the wall, both in seconds."""

    def __init__(self, now_s: Callable[[], float], unix_now: Callable[[], float]) -> None:
        self._now_s = now_s
        self._unix_now = unix_now
        self._under_way: dict[str, _Note] = {}
        self._uncounted: OrderedDict[str, _Note] = OrderedDict()
        self._ended: Ring[RequestEnded] = Ring(FOLLOWED)
        self._salt = secrets.token_bytes(16)

    def arrived(self, request_id: str, ticket: Ticket) -> None:
        """`request_id` is unique among those under way."""
        self._under_way[request_id] = _Note(ticket, self._unix_now())

    def granted(self, request_id: str, waited_s: float) -> None:
        note = self._under_way[request_id]
        note.waited_s, note.granted_at_s = waited_s, self._now_s()

    def left(self, request_id: str, outcome: Outcome) -> None:
        """The end of a request, granted or not."""
        note = self._under_way.pop(request_id)
        note.outcome, note.ended_at_s = outcome, self._now_s()
        if note.waited_s is not None:
            note.service_s = note.ended_at_s - note.granted_at_s
        if note.waited_s is None or note.usage is not None:
            self._tell(note)
        else:
            earlier = self._uncounted.pop(request_id, None)
            if earlier is not None:
                self._tell(earlier)
            self._uncounted[request_id] = note
        self._give_up_counts()

    def counted(self, usage: Usage) -> Ticket | None:
        """A worker has counted a request's tokens. Whose they are, or None if they are counted or forgotten already."""
        note = self._uncounted.pop(usage.request_id, None)
        if note is not None:
            note.usage = usage
            self._tell(note)
            return note.ticket
        note = self._under_way.get(usage.request_id)
        if note is None or note.usage is not None:
            return None
        note.usage = usage
        return note.ticket

    def follow(self) -> AsyncGenerator[RequestEnded, None]:
        """Every request that ends from now on."""
        return self._ended.follow(kept=False)

    def _give_up_counts(self) -> None:
        latest_s = self._now_s() - COUNT_PATIENCE_S
        while self._uncounted:
            note = next(iter(self._uncounted.values()))
            if note.ended_at_s > latest_s and len(self._uncounted) <= MAX_UNCOUNTED:
                return
            self._uncounted.popitem(last=False)
            self._tell(note)

    def _tell(self, note: _Note) -> None:
        usage = note.usage
        self._ended.add(
            RequestEnded(
                id=note.ticket.request_id,
                arrived_at=note.arrived_at,
                model=note.ticket.model_id,
                client=hashlib.blake2b(note.ticket.client.encode(), key=self._salt, digest_size=6).hexdigest(),
                priority=note.ticket.priority,
                outcome=note.outcome,
                waited_s=note.waited_s,
                service_s=note.service_s,
                prompt_tokens=usage.prompt_tokens if usage is not None else None,
                cached_tokens=usage.cached_tokens if usage is not None else None,
                completion_tokens=usage.completion_tokens if usage is not None else None,
            )
        )
