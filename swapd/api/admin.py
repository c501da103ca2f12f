"""The documents of swapd's own administration, under /swapd/v1/. Pure: must never do I/O."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from swapd.activity.shapes import Activity, Usage
from swapd.api import strict_json
from swapd.api.shapes import shaped
from swapd.pool.status import DeviceStatus, Happening, ModelStatus, Profiles, RequestEnded, Status, Unloaded


class ProfileWish(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /swapd/v1/profiles/active`; null is for none."""

    profile: str | None


def read_wish(body: bytes) -> str | None:
    """The profile that is wished for. Raises `BadRequestError`."""
    return shaped(strict_json.parse_object(body), ProfileWish).profile


_encoder = msgspec.json.Encoder()


def document(snapshot: Status | ModelStatus | DeviceStatus | Profiles | Unloaded | Activity | Usage) -> bytes:
    """A snapshot as JSON: the shape of `swapd.pool.status` or `swapd.activity.shapes`."""
    return _encoder.encode(snapshot)


def event(item: Happening | RequestEnded) -> bytes:
    """One server-sent event of GET events or GET requests; `data` is the item as JSON."""
    return b"data: " + _encoder.encode(item) + b"\n\n"


def log_event(line: str) -> bytes:
    """One server-sent event of GET logs; `data` is the line, which must hold no line break."""
    assert "\n" not in line
    assert "\r" not in line
    return f"data: {line}\n\n".encode()


def log_text(lines: Iterable[str]) -> str:
    """Log lines as one text, each ended by a newline."""
    return "".join(f"{line}\n" for line in lines)
