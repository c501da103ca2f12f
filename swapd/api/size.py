"""How large a request is, before any model has seen it: a plain rule, good enough to share and to bound by. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BYTES_PER_TOKEN = 4
"""Of a request's body. English text has about four characters to a token."""

MEDIUM_TOKENS = 1000
"""For each attached image or sound, in place of its bytes."""

_MEDIA = ("image_url", "input_audio")
_LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
_CHOICES = ("n", "best_of")


def of_prompt(fields: Mapping[str, Any], body_bytes: int) -> int:
    """Estimated tokens of a request with these fields."""
    media = [part for message in _listed(fields.get("messages")) for part in _media(message)]
    text_bytes = max(0, body_bytes - sum(_bytes(part) for part in media))
    return -(-text_bytes // BYTES_PER_TOKEN) + MEDIUM_TOKENS * len(media)


def answer_limit(fields: Mapping[str, Any]) -> int | None:
    """What the request itself allows of an answer, over all its choices, in tokens."""
    limits = _counts(fields, _LIMITS)
    return min(limits) * max([1, *_counts(fields, _CHOICES)]) if limits else None


def _media(message: object) -> list[object]:
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = (part for part in _listed(content) if isinstance(part, Mapping))
    return [part[kind] for part in parts if (kind := part.get("type")) in _MEDIA and kind in part]


def _bytes(medium: object) -> int:
    """Of an attachment, which is base64 and hence one byte a character."""
    if isinstance(medium, str):
        return len(medium)
    return sum(len(value) for value in medium.values() if isinstance(value, str)) if isinstance(medium, Mapping) else 0


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _counts(fields: Mapping[str, Any], names: Iterable[str]) -> list[int]:
    values = [fields.get(name) for name in names]
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value >= 0]
