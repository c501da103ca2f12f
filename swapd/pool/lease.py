"""What the front door gives the pool and gets from it.

Owns plain data only. A lease is the right to send one request to one worker; it ends with its `async with`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from backends.address import Address, TcpAddress, UnixAddress, UrlAddress

__all__ = [
    "Ability",
    "Address",
    "Lease",
    "Patience",
    "Place",
    "Sense",
    "TcpAddress",
    "Ticket",
    "TokenCounts",
    "UnixAddress",
    "UrlAddress",
]

Ability = Literal["chat", "completions", "embeddings", "rerank"]
"""What some models can do and others cannot; the names of `backends.base.Capabilities`."""
Sense = Literal["vision", "audio"]
"""What some models take beside text; names of the same."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request as the scheduler sees it: no prompt, no key."""

    request_id: str
    model_id: str
    """An id of the configuration, aliases already resolved."""
    client: str
    """Who shares fairly with whom."""
    priority: int = 0
    weight: float = 1.0
    """Of the client among others: one of weight 2 gets twice as much."""
    prompt_tokens: int = 0
    """Estimated."""
    answer_limit: int | None = None
    """Tokens that the answer has at most; None where the request does not say."""
    needs: Ability | None = None
    """What the model must be able to do; None for what every model can."""
    senses: tuple[tuple[Sense, str], ...] = ()
    """What the request's media ask for, each with the field of the first that does."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a waiting request stands."""

    position: int
    """1 is the next to be granted."""
    state: str
    """What it waits for: `queued`, `loading`, `loading, 40 %`, or a longer sentence that begins with `waits for`."""
    expected_wait_s: float | None
    """Until it is granted; None where that would be a guess."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted place at a worker."""

    request_id: str
    model_id: str
    worker_id: int
    address: Address
    waited_s: float
    lost: asyncio.Future[str]
    """Done, with a sentence that says why, once the worker is gone. Await it under a timeout and a shield."""
    reports_usage: bool = True
    """The worker itself tells the pool of its progress and of tokens; else the front door has to, from the answer."""
    patience: Patience | None = None
    """With a server elsewhere; with a worker of ours the pool watches for progress."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server elsewhere may keep one request waiting, in seconds."""

    connect_s: float
    first_token_s: float
    """Without a byte, while its answer has not begun."""
    silence_s: float
    """Without a byte after that."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What one request took, as its answer says."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that were not computed anew."""
    completion_tokens: int
