"""Who goes first: inside a model's queue, and between models that wait for memory. Pure.

Inside a queue: priority class, then the client that was served the fewest tokens, then arrival. Waiting lifts
a request one class every `AGEING_S`, so nothing starves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from swapd.core.ledger import Model, Request

AGEING_S = 30.0
"""Seconds of waiting that are worth one priority class."""

MAX_CLIENTS = 1024
"""Clients a model remembers; the one unseen for longest is forgotten first."""


def aged_priority(priority: int, waited_s: float) -> int:
    return priority + int(waited_s / AGEING_S)


def next_request(waiting: Iterable[Request], served_tokens: Mapping[str, float], now_s: float) -> Request:
    """The request to be granted next, of a queue that is not empty."""
    return min(
        waiting,
        key=lambda request: (
            -aged_priority(request.priority, now_s - request.arrived_at_s),
            served_tokens.get(request.client, 0.0),
            request.arrived_at_s,
            request.id,
        ),
    )


def welcome(model: Model, client: str, active_clients: Collection[str]) -> None:
    """Note that a client arrives. One that was away starts level with the least served of those at work.

    Otherwise a newcomer's empty account would let it push everyone aside until it had caught up with tokens
    served long ago. When nobody is at work, the client that left last stands for them. One that is at work
    keeps its account: being behind is its claim to be next. Source: virtual token counter, Sheng et al.,
    OSDI 2024, algorithm 2.
    """
    # Taken out and put back so that the dict's order is the order of last arrivals.
    mine = model.served_tokens.pop(client, 0.0)
    if client not in active_clients:
        peers = active_clients or [next(reversed(model.last_seen_s), client)]
        mine = max(mine, min(model.served_tokens.get(peer, mine) for peer in peers))
    model.served_tokens[client] = mine
    while len(model.served_tokens) > MAX_CLIENTS:
        del model.served_tokens[next(iter(model.served_tokens))]


def charge(model: Model, client: str, tokens: int) -> None:
    """Add served tokens to a client's account, if it still has one."""
    if client in model.served_tokens:
        model.served_tokens[client] += tokens


def note_seen(model: Model, client: str, now_s: float) -> None:
    """A client's request ended just now; it may well come back."""
    model.last_seen_s.pop(client, None)
    model.last_seen_s[client] = now_s
    while len(model.last_seen_s) > MAX_CLIENTS:
        del model.last_seen_s[next(iter(model.last_seen_s))]
