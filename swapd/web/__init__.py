"""The web page: its files, and nothing that needs a build.

Owns which files there are and what they are served as. Must never hold data: what the page shows, it asks for like any
other client, with a key if the daemon wants one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

PAGE = "index.html"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    content_type: str
    """All of them are texts in UTF-8."""
    etag: str
    """Without its quotes: changes with the body."""


@cache
def assets() -> Mapping[str, Asset]:
    """Every file of the page by its name. Reads them once."""
    found = {}
    for file in resources.files(__name__).joinpath("static").iterdir():
        kind = _TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            body = file.read_bytes()
            found[file.name] = Asset(body, kind, hashlib.sha256(body).hexdigest()[:16])
    return found
