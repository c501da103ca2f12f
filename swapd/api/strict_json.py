"""Request bodies as JSON, read strictly: what one parser takes and the next one reads differently is refused.

Owns the rules that RFC 8259 leaves open (duplicate names, depth, number range). Must never do I/O, and never
let a body of any shape raise anything but `BadRequestError`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from swapd.errors import BadRequestError

MAX_DEPTH = 64
"""Objects and arrays within each other; the outermost counts."""

_INTEGER_MIN = -(2**63)
_INTEGER_MAX = 2**64 - 1
_INTEGER_MAX_DIGITS = 20
_PARAM_MAX_CHARS = 200

_KEEP_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(eq=False, slots=True)
class _Refused:
    """Stands in the parsed tree where a value was refused, so that its path can be found afterwards."""

    why: str
    key: str = ""


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises `BadRequestError`, with `param` where the place has a name.

    Refused: invalid UTF-8, syntax errors, duplicate names in one object, NaN and infinities (also as 1e999),
    integers beyond 64 bits, lone surrogates, nesting deeper than `MAX_DEPTH`, anything but an object on top.
    """
    if _is_deeper_than(body, MAX_DEPTH):
        raise BadRequestError(f"the body is nested deeper than {MAX_DEPTH} levels")
    root, refused = _load(_decode(body))
    if refused:
        raise _refusal(root, refused[0])
    if not isinstance(root, dict):
        raise BadRequestError(f"the body must be a JSON object, not {_json_name(root)}")
    if _ESCAPED_SURROGATE.search(body):
        _check_surrogates(root)
    return root


def _decode(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequestError(f"the body is not valid UTF-8 at byte {exc.start}") from None


def _is_deeper_than(body: bytes, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than `limit`.

    Each round removes exactly the innermost pairs, so it takes one round per level, each a single pass in C.
    A body with unbalanced brackets is left to the parser unless what remains proves its depth.
    """
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(unescaped.split(b'"')[::2])
    brackets = outside.translate(None, delete=_KEEP_BRACKETS).translate(_BRACES_TO_BRACKETS)
    for _ in range(limit):
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    return b"[" * (limit + 1) in brackets or b"[]" in brackets


def _load(text: str) -> tuple[Any, list[_Refused]]:
    refused: list[_Refused] = []

    def refuse(why: str, key: str = "") -> _Refused:
        marker = _Refused(why, key)
        refused.append(marker)
        return marker

    def integer(digits: str) -> int | _Refused:
        if len(digits) <= _INTEGER_MAX_DIGITS + 1:
            value = int(digits)
            if _INTEGER_MIN <= value <= _INTEGER_MAX:
                return value
        return refuse("an integer does not fit 64 bits")

    def real(digits: str) -> float | _Refused:
        value = float(digits)
        return value if math.isfinite(value) else refuse("a number is too large")

    def constant(name: str) -> _Refused:
        return refuse(f"{name} is not a JSON value")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any] | _Refused:
        mapping = dict(items)
        if len(mapping) == len(items):
            return mapping
        return refuse("a name appears twice in one object", _first_duplicate(items))

    try:
        root = json.loads(text, parse_int=integer, parse_float=real, parse_constant=constant, object_pairs_hook=pairs)
    except json.JSONDecodeError as exc:
        raise BadRequestError(f"the body is not valid JSON: {exc}") from None
    except RecursionError:
        raise BadRequestError(f"the body is nested deeper than {MAX_DEPTH} levels") from None
    return root, refused


def _first_duplicate(items: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in items:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("no duplicate among the items")


def _refusal(root: Any, marker: _Refused) -> BadRequestError:
    path = _path_to(root, marker)
    param = ".".join(part for part in (path, marker.key) if part)[:_PARAM_MAX_CHARS] or None
    return BadRequestError(f"{param}: {marker.why}" if param else marker.why, param=param)


def _path_to(root: Any, marker: _Refused) -> str:
    """Where the marker stands, as `messages[0].content`; empty on top or when another refusal hides it."""
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, value = stack.pop()
        if value is marker:
            return path
        if isinstance(value, dict):
            stack.extend((f"{path}.{key}" if path else key, inner) for key, inner in value.items())
        elif isinstance(value, list):
            stack.extend((f"{path}[{index}]", inner) for index, inner in enumerate(value))
    return ""


def _check_surrogates(root: dict[str, Any]) -> None:
    try:
        msgspec.json.encode(root)
    except UnicodeEncodeError:
        raise BadRequestError("a string holds half of a surrogate pair, which is no character") from None


def _json_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "a number"
