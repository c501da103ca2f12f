"""Which request took which tokens: what the front door and the pool know of it, put together into one row.

Owns rows whose tokens are not counted yet. Must never wait, nor hold a prompt or a key.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from msgspec import structs

from swapd.activity import queries
from swapd.activity.shapes import Activity, Grouping, Row, Usage
from swapd.activity.store import Store

COUNT_PATIENCE_S = 10.0
"""The count may come a moment after the end. After this a row is written without tokens."""
MAX_UNCOUNTED = 4_096


@dataclass(frozen=True, slots=True)
class Counts:
    """What one request took, in tokens."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Book:
    """Closes its store when it is left. `kept` hears of each row once nothing more will be known of it."""

    def __init__(
        self,
        store: Store,
        now_s: Callable[[], float] = time.monotonic,
        kept: Callable[[Row], None] = lambda _row: None,
    ) -> None:
        self._store = store
        self._kept = kept
        self._now_s = now_s
        self._under_way: dict[str, Counts | None] = {}
        self._uncounted: OrderedDict[str, tuple[float, Row]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, row in self._uncounted.values():
            self._keep(row)
        self._uncounted.clear()
        self._store.close()

    def began(self, request_id: str) -> None:
        """A request has come. `request_id` is unique among those under way."""
        self._under_way[request_id] = None

    def ended(self, request_id: str, row: Row | None, *, ran: bool) -> None:
        """Its end, with the row to keep, if any. What `ran` at a worker is likely to be counted."""
        counts = self._under_way.pop(request_id)
        self._give_up_counts()
        if row is None:
            return
        if counts is not None or not ran:
            self._keep(_counted(row, counts))
            return
        earlier = self._uncounted.pop(request_id, None)
        if earlier is not None:
            self._keep(earlier[1])
        self._uncounted[request_id] = (self._now_s(), row)

    def counted(self, request_id: str, counts: Counts) -> None:
        """A request's tokens, before or after its end."""
        held = self._uncounted.pop(request_id, None)
        if held is not None:
            self._keep(_counted(held[1], counts))
        elif request_id in self._under_way:
            self._under_way[request_id] = counts

    def _keep(self, row: Row) -> None:
        self._store.write(row)
        self._kept(row)

    async def newest(self, limit: int) -> Activity:
        """The newest rows. Raises `ActivityUnavailableError`."""
        self._give_up_counts()
        return await self._store.ask(partial(queries.newest, limit=limit))

    async def usage(self, by: Grouping, since: float) -> Usage:
        """Sums over what has ended since the Unix time `since`. Raises `ActivityUnavailableError`."""
        self._give_up_counts()
        return await self._store.ask(partial(queries.usage, by=by, since=since))

    def _give_up_counts(self) -> None:
        latest_s = self._now_s() - COUNT_PATIENCE_S
        while self._uncounted:
            ended_s, row = next(iter(self._uncounted.values()))
            if ended_s > latest_s and len(self._uncounted) < MAX_UNCOUNTED:
                return
            self._uncounted.popitem(last=False)
            self._keep(row)


def _counted(row: Row, counts: Counts | None) -> Row:
    if counts is None:
        return row
    return structs.replace(
        row,
        prompt_tokens=counts.prompt_tokens,
        cached_tokens=counts.cached_tokens,
        completion_tokens=counts.completion_tokens,
    )
