"""A parsed body as a typed one, and what is wrong with it in words that name the field. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from swapd.errors import BadRequestError

_Shape = TypeVar("_Shape")

_PATH = re.compile(r"^(?P<reason>.*?)(?: - at `(?:key in )?\$(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>\w+)`")


def shaped(fields: Mapping[str, Any], shape: type[_Shape]) -> _Shape:
    """The fields as this type; those that it does not name are left out. Raises `BadRequestError`."""
    try:
        return msgspec.convert(fields, shape)
    except msgspec.ValidationError as exc:
        raise _as_bad_request(str(exc)) from None


def required(value: _Shape | None, param: str) -> _Shape:
    """The value of a field that only some kinds of a thing must have. Raises `BadRequestError` if there is none."""
    if value is None:
        raise BadRequestError(f"{param}: this field is required", param=param)
    return value


def _as_bad_request(text: str) -> BadRequestError:
    """msgspec's sentence (`Expected `int`, got `str` - at `$.n``) with its path as the parameter."""
    match = _PATH.match(text)
    assert match is not None
    reason, path = match["reason"], (match["path"] or "").lstrip(".")
    missing = _MISSING.search(reason)
    if missing:
        param = ".".join(part for part in (path, missing["field"]) if part)
        return BadRequestError(f"{param}: this field is required", param=param)
    reason = reason[:1].lower() + reason[1:]
    return BadRequestError(f"{path}: {reason}" if path else reason, param=path or None)
