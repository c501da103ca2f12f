"""The shapes of `GET /swapd/v1/activity` and `GET /swapd/v1/usage`.

Owns names that clients depend on: fields may be added, never renamed. Times are seconds.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Grouping = Literal["model", "key", "day"]
DEFAULT_SINCE = "7d"
DEFAULT_ROWS, MAX_ROWS = 100, 1_000
"""Of `GET /swapd/v1/activity`."""
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One request that has ended."""

    ended_at: float
    """Unix time."""
    request_id: str
    model: str
    client: str
    """By the name that queues know it by: a key's name, never a key."""
    endpoint: str
    """A route, never a path."""
    status: int
    """What the client saw. 499: it left, or somebody cancelled the request."""
    prompt_tokens: int | None = None
    """Those taken from a cache among them; None when nobody has counted them."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    waited_s: float | None = None
    """For its place at a worker; None when it was given none."""
    first_token_s: float | None = None
    """From its arrival to its stream's first event; None when there was none."""
    total_s: float


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """The newest rows, the newest first."""

    rows: tuple[Row, ...]


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one model, client or day took. Times are means over the requests that have them."""

    name: str
    requests: int
    failed: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    waited_s: float | None
    first_token_s: float | None
    total_s: float | None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    by: Grouping
    since: float
    """Unix time of the oldest request that is counted in."""
    rows: tuple[UsageRow, ...]
    """At most so many; days in order, others with the most requests first."""
