"""Images and sounds in requests: attached, never fetched.

A URL of elsewhere in a request would make a worker ask whatever the daemon's machine can reach (llama-server does so
for every http URL, and for files). Owns the rule that only `data:` is taken, before a model is loaded for it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from swapd.errors import BadRequestError


class MediaBody(msgspec.Struct):
    """Of a request for a sound or an image. All else is its worker's matter."""

    model: Annotated[str, msgspec.Meta(min_length=1)]


_SCHEME = "data:"
_SUFFIX = "_url"
"""Of the fields that hold media: image_url, audio_url, video_url and whatever comes next."""


def refuse_remote(fields: Mapping[str, Any]) -> None:
    """Raise `BadRequestError` for the first medium of a chat that is not in the request itself."""
    messages = fields.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        for position, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping):
                _check_part(part, f"messages[{index}].content[{position}]")


def _check_part(part: Mapping[str, Any], where: str) -> None:
    kind = part.get("type")
    named = {kind: None} if isinstance(kind, str) and kind.endswith(_SUFFIX) else {}
    for name, value in {**named, **part}.items():
        if not name.lower().endswith(_SUFFIX) or (value is None and name != kind):
            continue
        param = f"{where}.{name}"[:200]
        url = value
        if isinstance(value, Mapping):
            param, url = f"{param}.url", value.get("url")
        if not isinstance(url, str) or url[: len(_SCHEME)].lower() != _SCHEME:
            raise BadRequestError(
                f"{param} must be a data: URL, such as data:image/png;base64,…: this server fetches nothing for a "
                "client, so send the file itself",
                param=param,
            )
