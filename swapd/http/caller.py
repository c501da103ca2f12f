"""Who asks, and how urgent that may be: decided here and nowhere else.

Owns the names of clients and the priority header. Must never keep or log a key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from aiohttp import hdrs, web

from swapd.config.keys import HIGHEST_PRIORITY, LOWEST_PRIORITY
from swapd.errors import BadRequestError
from swapd.http.auth import HOLDER

PRIORITY_HEADER = "X-Swapd-Priority"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class Caller:
    client: str
    """Who shares fairly with whom."""
    priority: int = 0
    weight: float = 1.0


def identify(request: web.Request, client_header: str | None) -> Caller:
    """The client by its API key, with what that key's entry says of class and weight.

    Where no keys are asked for, it is the one that the configured header names, else that of the bearer token's hash,
    else that of the address. Raises `BadRequestError` for a priority header that is no number.
    """
    asked, holder = request.headers.get(PRIORITY_HEADER), request.get(HOLDER)
    user = _user(request, client_header)
    if holder is None:
        return Caller(_anonymous(request) if user is None else f"user-{user}", _lowered(0, asked))
    key = holder.key
    client = f"{key.name}/{user}" if key.per_user and user is not None else key.name
    return Caller(client, _lowered(key.priority, asked), key.weight)


def _user(request: web.Request, client_header: str | None) -> str | None:
    """Whom the configured header names, in letters that can stand anywhere."""
    named = request.headers.get(client_header, "").strip() if client_header is not None else ""
    if not named:
        return None
    return named if _PLAIN_NAME.fullmatch(named) else _digest(named)


def _anonymous(request: web.Request) -> str:
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
