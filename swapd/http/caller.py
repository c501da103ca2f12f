"""Who asks, and how urgent that may be: decided here and nowhere else.

Owns the names of clients and the priority header. Must never keep or log a key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from aiohttp import hdrs, web

from swapd.errors import BadRequestError

PRIORITY_HEADER = "X-Swapd-Priority"
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class Caller:
    client: str
    """Who shares fairly with whom."""
    priority: int = 0
    weight: float = 1.0


def identify(request: web.Request, client_header: str | None) -> Caller:
    """The client by the configured header, else by its bearer token's hash, else by its address.

    Raises `BadRequestError` for a priority header that is no number.
    """
    return Caller(_client(request, client_header), _lowered(0, request.headers.get(PRIORITY_HEADER)))


def _client(request: web.Request, client_header: str | None) -> str:
    named = request.headers.get(client_header, "").strip() if client_header is not None else ""
    if named:
        return f"user-{named if _PLAIN_NAME.fullmatch(named) else _digest(named)}"
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return f"key-{_digest(key.strip())}"
    return request.remote or "unix"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _lowered(own: int, asked: str | None) -> int:
    """The client's own priority, or what it asks for if that is less."""
    if asked is None:
        return own
    text = asked.strip()
    priority = int(text) if _WHOLE_NUMBER.fullmatch(text) else None
    if priority is None or not LOWEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise BadRequestError(
            f"{PRIORITY_HEADER}: expected a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}",
            param=PRIORITY_HEADER,
        )
    return min(own, priority)
