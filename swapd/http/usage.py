"""The routes that tell of past requests: sums, and the newest ones.

Owns what their queries may say. Must never reach into the store itself.
"""

from __future__ import annotations

import time

from aiohttp import web

from swapd.activity.book import Book
from swapd.activity.shapes import DEFAULT_ROWS, DEFAULT_SINCE, GROUPINGS, MAX_ROWS
from swapd.api import admin
from swapd.config.quantities import parse_time
from swapd.errors import BadRequestError


class UsageRoutes:
    def __init__(self, book: Book) -> None:
        self._book = book

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/swapd/v1/usage", self.usage, allow_head=False)
        router.add_get("/swapd/v1/activity", self.activity, allow_head=False)

    async def usage(self, request: web.Request) -> web.Response:
        """`by` is a grouping, `since` how far back, such as `7d`."""
        asked = request.query.get("by", GROUPINGS[0])
        by = next((one for one in GROUPINGS if one == asked), None)
        if by is None:
            raise BadRequestError(f"by: expected one of {', '.join(GROUPINGS)}", param="by")
        try:
            back_s = parse_time(request.query.get("since", DEFAULT_SINCE))
        except ValueError as error:
            raise BadRequestError(f"since: {error}", param="since") from None
        return _document(admin.document(await self._book.usage(by, max(0.0, time.time() - back_s))))

    async def activity(self, request: web.Request) -> web.Response:
        """The newest `limit` rows."""
        asked = request.query.get("limit", str(DEFAULT_ROWS))
        limit = int(asked) if asked.isascii() and asked.isdigit() and len(asked) <= 6 else 0
        if not 1 <= limit <= MAX_ROWS:
            raise BadRequestError(f"limit: expected a whole number from 1 to {MAX_ROWS}", param="limit")
        return _document(admin.document(await self._book.newest(limit)))


def _document(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
