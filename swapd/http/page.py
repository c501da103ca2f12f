"""The web page's routes: the page at `/` for browsers, and the files that it is made of.

Owns what a browser may do with them. Open to everybody: there is nothing in them but what is in every swapd.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from swapd.errors import NotFoundError
from swapd.web import PAGE, Asset, assets

FILES = "/ui/{name}"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing from elsewhere, nothing inline: what a model says cannot become a script even if it became HTML."""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    hdrs.CACHE_CONTROL: "no-cache",
}


def add_routes(app: web.Application) -> None:
    """Put the routes into the application."""
    app.router.add_get("/", _root)
    app.router.add_get(FILES, _file)


def wants_html(request: web.Request) -> bool:
    """Whether somebody looks with a browser: programs that ask whether a server is there take anything."""
    return "text/html" in request.headers.get(hdrs.ACCEPT, "").lower()


async def _root(request: web.Request) -> web.Response:
    """GET and HEAD /. Ollama's clients look for these words."""
    if not wants_html(request):
        return web.Response(text="Ollama is running", headers={hdrs.VARY: hdrs.ACCEPT})
    response = _answer(request, assets()[PAGE])
    response.headers[hdrs.VARY] = hdrs.ACCEPT
    return response


async def _file(request: web.Request) -> web.Response:
    asset = assets().get(request.match_info["name"])
    if asset is None:
        raise NotFoundError("the web page has no such file")
    return _answer(request, asset)


def _answer(request: web.Request, asset: Asset) -> web.Response:
    known = request.if_none_match or ()
    if any(one.value == asset.etag for one in known):
        response = web.Response(status=web.HTTPNotModified.status_code, headers=_HEADERS)
    else:
        response = web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=_HEADERS)
    response.etag = asset.etag
    return response
