"""Which names and which web pages may be used to reach the daemon: before a route, a key or a body counts.

Owns the checks of `Host` (against DNS rebinding: a page of an attacker whose name suddenly leads here) and of `Origin`
(against pages of elsewhere that send requests), and the CORS headers for origins that the configuration names.
Must never trust either header for who a client is.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Container, Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware

from swapd.config.access import ANY_ORIGIN
from swapd.config.address import TcpAddress, parse_address
from swapd.config.schema import Server
from swapd.errors import BadRequestError, ForeignHostError, ForeignOriginError
from swapd.http.errors import Handler

PREFLIGHT_S = 600
"""How long a browser may remember the answer to a preflight."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(:[0-9]{1,5})?", re.ASCII)
_READS = frozenset((hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS))
_ALLOWED_ORIGIN = web.RequestKey("swapd_allowed_origin", str)
_EXPOSED = "X-Request-Id, Retry-After, X-Swapd-Queue-Time, X-Swapd-Position, X-Swapd-Expected-Wait"


def firewall(server: Callable[[], Server]) -> Middleware:
    """`server` gives the settings, which a reload may replace; the names of `listen` are those of the start."""
    names = frozenset(("localhost", *_own_names(), *_listen_names(server().listen)))

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        settings = server()
        if not _is_unix(request):
            _check_host(request, names, settings.hosts)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not _is_own(origin, request.headers.get(hdrs.HOST)):
            if origin in settings.cors_origins or ANY_ORIGIN in settings.cors_origins:
                request[_ALLOWED_ORIGIN] = origin
            elif request.method not in _READS:
                raise ForeignOriginError(
                    f"web pages of {origin[:100]!r} may not use this server; its administrator can allow them "
                    "(server.cors_origins)"
                )
        if request.method == hdrs.METH_OPTIONS and _ALLOWED_ORIGIN in request:
            return _preflight_answer(request)
        return await handler(request)

    return check


async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """aiohttp's hook before a response starts. Credentials are never allowed: keys are sent by hand."""
    origin = request.get(_ALLOWED_ORIGIN)
    if origin is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)


def _preflight_answer(request: web.Request) -> web.Response:
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, DELETE",
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
    }
    # No header of a request has a meaning here that a page of an allowed origin must not use.
    if asked := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
    return web.Response(status=web.HTTPNoContent.status_code, headers=headers)


def _check_host(request: web.Request, names: Container[str], further: Container[str]) -> None:
    """An address is as good as a known name: a page that was loaded from an address belongs to who serves there."""
    given = request.headers.getall(hdrs.HOST, ())
    if not given and request.version < HttpVersion11:
        return
    name = host_name(given[0]) if len(given) == 1 else None
    if name is None:
        raise BadRequestError("the request must have one Host header, with a host's name or address")
    if not (name in names or name in further or name.endswith(".localhost") or _is_address(name)):
        raise ForeignHostError(
            f"this server does not go by the name of {name[:100]!r}; its administrator can add it (server.hosts)"
        )


@lru_cache(maxsize=256)
def host_name(header: str) -> str | None:
    """The name or address in a Host header, in lower case; None for what is neither."""
    match = _HOST.fullmatch(header.strip())
    return match[1].lower().removesuffix(".") if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_own(origin: str, host: str | None) -> bool:
    """Whether a page came from this server itself, as the browser called it."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and parts.netloc == host


def _is_unix(request: web.Request) -> bool:
    """A browser cannot reach a Unix socket, so what clients write into Host there has no meaning."""
    own = None if request.transport is None else request.transport.get_extra_info("socket")
    return own is not None and own.family == socket.AF_UNIX


def _own_names() -> tuple[str, ...]:
    """This machine's name, and the one that it has by multicast DNS. Neither can belong to an attacker's page."""
    name = socket.gethostname().lower()
    return (name,) if "." in name else (name, f"{name}.local")


def _listen_names(listen: Iterable[str]) -> tuple[str, ...]:
    """The hosts of the addresses, in lower case."""
    parsed = (parse_address(text) for text in listen)
    return tuple(address.host.lower() for address in parsed if isinstance(address, TcpAddress))
