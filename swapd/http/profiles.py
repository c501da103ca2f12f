"""The routes of profiles: which there are, and which is in force.

Must never decide what a profile changes (`swapd.config.profiles`).
"""

from __future__ import annotations

from aiohttp import web

from swapd.api import admin
from swapd.http import limits
from swapd.pool.door import Door
from swapd.pool.status import Profiles

MAX_BODY_BYTES = 4096


def add_routes(app: web.Application, door: Door) -> None:
    """`GET /swapd/v1/profiles` and `PUT /swapd/v1/profiles/active`, which both answer with the profiles."""

    def profiles() -> web.Response:
        found = tuple(door.routes.profiles())
        active = next((one.name for one in found if one.active), None)
        document = admin.document(Profiles(active=active, profiles=found))
        return web.Response(body=document, content_type="application/json")

    async def show(_request: web.Request) -> web.Response:
        return profiles()

    async def switch(request: web.Request) -> web.Response:
        limits.require_json(request)
        with limits.BodyBudget().hold(MAX_BODY_BYTES) as share:
            body = await limits.read_body(request, share, max_bytes=MAX_BODY_BYTES)
        await door.switch_profile(admin.read_wish(body))
        return profiles()

    app.router.add_get("/swapd/v1/profiles", show)
    app.router.add_put("/swapd/v1/profiles/active", switch)
