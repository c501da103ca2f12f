"""Who goes first: inside a model's queue, and between models that wait for memory. Pure.

Inside a queue: priority class, then the client with the lowest account (`requests.Account`), then arrival. So that
nothing starves, whatever its class and whoever else comes, every fourth place goes to the request that has waited
longest, once that is `AGED_S`: with k older requests in the queue it is served within 4 (k + 1) further grants.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from swapd.core.records import Model
from swapd.core.requests import Request, rank

AGEING_S = 30.0
"""Seconds of waiting that lift a model by one priority class among models that wait for memory."""

AGED_S = 30.0
"""After so many seconds of waiting a request may go before its turn."""

AGED_EVERY = 4
"""Of so many grants, one may."""

MAX_CLIENTS = 1024
"""Clients whose last request a model remembers; the one unseen for longest is forgotten first."""


def aged_priority(priority: int, waited_s: float) -> int:
    return priority + int(waited_s / AGEING_S)


def next_request(model: Model, now_s: float) -> Request:
    """The request to be granted next, of a queue that is not empty."""
    if model.shares.grants % AGED_EVERY == AGED_EVERY - 1:
        oldest = next(iter(model.waiting.values()))
        if now_s - oldest.arrived_at_s >= AGED_S:
            return oldest
    return model.shares.first()


def in_order(model: Model) -> Iterator[Request]:
    """What waits, first what is granted first: if nobody else comes, estimates are right and nothing ages.

    The queue must not change until the last one that is wanted was taken.
    """
    heap = []
    for account in model.shares.active.values():
        line = account.in_line()
        first = next(line, None)
        if first is not None:
            heap.append((rank(first, account.level), first, line))
    heapq.heapify(heap)
    while heap:
        (_, level, _, _), request, line = heap[0]
        yield request
        following = next(line, None)
        if following is None:
            heapq.heappop(heap)
        else:
            level += request.estimated_tokens / request.weight
            heapq.heapreplace(heap, (rank(following, level), following, line))


def note_seen(model: Model, client: str, now_s: float) -> None:
    """A client's request ended just now; it may well come back."""
    model.last_seen_s.pop(client, None)
    model.last_seen_s[client] = now_s
    while len(model.last_seen_s) > MAX_CLIENTS:
        del model.last_seen_s[next(iter(model.last_seen_s))]
