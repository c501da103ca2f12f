"""The keys of `server` that say who may come in: the file of API keys, names of hosts, origins of web pages.

Owns their form. Must never read the file of keys (see `keys`) or judge a request (see `swapd.http`).
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from swapd.config.nodes import Scalar
from swapd.config.problems import Problems, shown
from swapd.config.readers import Place, Reader, Trouble, items, path_from, text_at

CREDENTIALS = "$CREDENTIALS_DIRECTORY/"
"""systemd's directory of what LoadCredential= passes; only the service itself knows where that is."""
ANY_ORIGIN = "*"

_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)


def keys_file(base_dir: Path) -> Reader:
    """A path, as it is written if it begins with `CREDENTIALS`; None for null."""

    def read(place: Place, _problems: Problems) -> Path | None:
        if isinstance(place.node, Scalar) and place.node.is_null:
            return None
        text = text_at(place, "the path of a file of keys, or null")
        if text.startswith(CREDENTIALS):
            name = text.removeprefix(CREDENTIALS)
            if "/" in name or not name.isprintable() or name in ("", ".", ".."):
                raise Trouble(f"must be {CREDENTIALS}NAME, the NAME of LoadCredential=")
            return Path(text)
        if text.startswith("$"):
            raise Trouble(f"begins with a variable that is not known here; write a path or {CREDENTIALS}NAME")
        return path_from(text, base_dir)

    return read


def read_hosts(place: Place, _problems: Problems) -> tuple[str, ...]:
    found = []
    for each in items(place, most=64):
        text = text_at(each, "a host's name such as gpu.example.org")
        if not _HOST_NAME.fullmatch(text):
            raise Trouble(f"{shown(text)} is no host's name; write one such as gpu.example.org, without a port", each)
        found.append(text.lower())
    return tuple(dict.fromkeys(found))


def read_origins(place: Place, _problems: Problems) -> tuple[str, ...]:
    found = []
    for each in items(place, most=64):
        text = text_at(each, 'an origin such as https://chat.example.org, or "*"')
        if text != ANY_ORIGIN and not _is_origin(text):
            raise Trouble(f'{shown(text)} is no origin; write one such as https://chat.example.org:3000, or "*"', each)
        found.append(text)
    return tuple(dict.fromkeys(found))


def _is_origin(text: str) -> bool:
    """A scheme and an authority in lower case, as browsers write them."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    wanted = f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")
    return bool(parts.scheme and host) and text == wanted
