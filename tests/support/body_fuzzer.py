"""Random JSON bodies made from the types that check them: values within, at and beyond every bound, and broken texts.

Owns the walk over msgspec's description of a type; what a new field may hold is tried without a change here. Bodies
are made as text, so that they can hold what no encoder writes: names that appear twice, NaN, numbers beyond all
bounds, halves of surrogate pairs, bytes that are no text. The same seed makes the same bodies.
"""

from __future__ import annotations

import base64
import json
import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec.inspect as inspect
from support.mmproj_files import png, wav

_INT64 = 2**63
_MAX_DEPTH = 6
_MAX_ITEMS = 300
"""A bound on a length is only overstepped if it is no larger."""
TEXTS = (
    "",
    "a",
    "hi",
    "0",
    "7",
    "511",
    "-1",
    "99999999999",
    "def f(x):\n    return",
    "émigré 世界 🙂",
    "\0",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "<tool_call>",
    '{"name": "f", "arguments": {}}',
    "{query}{document}",
    "{{ messages }}{% x",
    "x " * 700,
    "text",
    "function",
    "none",
    "auto",
)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


HINTS: Mapping[str, tuple[str, ...]] = {
    "role": ("system", "user", "assistant", "tool", "developer"),
    "type": ("text", "text", "function", "function", "json_object", "json_schema", "image_url", "input_audio"),
    "tool_choice": ("none", "auto", "required", ""),
    "encoding_format": ("float", "base64"),
    "arguments": ('{"city": "Oslo"}', "{", "[1]", ""),
    "model": ("m",),
    "grammar": ('root ::= "a" | [0-9]+', "root ::= root", 'root ::= ("ab" root)?', "x", ""),
    "url": (*(f"data:image/png;base64,{_encoded(png(9, 7, seed=seed))}" for seed in range(4)), "https://example.org/"),
    "data": (_encoded(wav(0.1)), _encoded(png(9, 7))),
    "name": ("f", "g", "get_weather"),
    "samplers": ("edskypmxt", "kpmt", "a", "top_k", "min_p", "temperature", "penalties"),
}
"""What makes a body of this field sound more often."""
_SCHEMA_VALUES: Mapping[str, tuple[str, ...]] = {
    "type": ('"object"', '"string"', '"integer"', '"number"', '"array"', '"boolean"', '["string", "null"]'),
    "enum": ('["a", "b"]', "[1, null, true]", "[]"),
    "const": ('"a"', "{}"),
    "required": ('["x"]', '["y", "a b"]', "[]"),
    "pattern": ('"^a+b?$"', '"[0-9]{2,4}"', '"("', '"(a|b)*c"', '"\\\\d"'),
    "format": ('"date"', '"uuid"', '"x"'),
    "minimum": ("0", "-3.5", "1e9"),
    "maximum": ("10", "-5"),
    "minLength": ("0", "3"),
    "maxLength": ("2", "100000"),
    "minItems": ("1", "3"),
    "maxItems": ("2", "0"),
    "additionalProperties": ("false", "true"),
    "$ref": ('"#"', '"#/$defs/x"', '"#/properties/x"', '"http://127.0.0.1/x"'),
    "enable_thinking": ("true", "false"),
}
_SCHEMA_KEYS = (*_SCHEMA_VALUES, "type", "type", "type", "properties", "properties", "items", "anyOf", "allOf", "$defs")
_ODD_NUMBERS = (
    "0",
    "-1",
    "-0.0",
    "1.5",
    "1e308",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "2147483648",
    "9" * 400,
    "1e-400",
)
_ODD = (
    *_ODD_NUMBERS,
    *(str(2**power + more) for power in (31, 32, 53, 63, 64, 70) for more in (-1, 0)),
    "null",
    "true",
    "false",
    '""',
    '"x"',
    '"12"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[[[1]]]",
    '{"a": 1}',
    '{"a": 1, "a": 2}',
    "[" * 70 + "]" * 70,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 70 + "1" + "}" * 70,
)


def scaled(whole: int, share: float) -> int:
    """How many of `whole` bodies to try: `share` of them, or the share that SWAPD_FUZZ says (1 is all)."""
    return int(whole * float(os.environ.get("SWAPD_FUZZ", share)))


class BodyFuzzer:
    """Makes bodies of one type.

    `others` are names of fields beside the type's own, as they are refused or ignored. `odds` has the shares of odd
    values among a body's, one of which is drawn for each body.
    """

    def __init__(
        self, shape: type, seed: int, *, others: Sequence[str] = (), odds: Sequence[float] = (0.0, 0.0, 0.02, 0.05, 0.3)
    ) -> None:
        self._rng = random.Random(seed)
        self._shape = inspect.type_info(shape)
        self._others = tuple(others)
        self._all_odds = tuple(odds)
        self._odds = 0.0

    @cached_property
    def fields(self) -> frozenset[str]:
        """The names of the type's own fields."""
        assert isinstance(self._shape, inspect.StructType)
        return frozenset(field.encode_name for field in self._shape.fields)

    def body(self) -> bytes:
        """One body: sound, with a few odd values, with many, or with its bytes damaged."""
        rng = self._rng
        self._odds = rng.choice(self._all_odds)
        text = self._value(self._shape, "", 0)
        if rng.random() < 0.02:
            text = rng.choice(_ODD)
        raw = text.encode()
        return self._damaged(raw) if rng.random() < 0.03 else raw

    def _damaged(self, raw: bytes) -> bytes:
        rng = self._rng
        at = rng.randrange(len(raw))
        return rng.choice(
            (
                raw[:at],
                raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :],
                raw[:at] + raw[max(0, at - 5) :],
                b"\xef\xbb\xbf" + raw,
                raw + raw,
                b"",
            )
        )

    # -- values ----------------------------------------------------------------------------------------------

    def _value(self, kind: inspect.Type, name: str, depth: int) -> str:
        """A value of a type, or now and then one that it refuses."""
        if self._rng.random() < self._odds:
            return self._beyond(kind) or self._rng.choice(_ODD)
        match kind:
            case inspect.UnionType():
                return self._value(self._rng.choice(kind.types), name, depth)
            case inspect.Metadata():
                return self._value(kind.type, name, depth)
            case inspect.StructType():
                return self._struct(kind, depth)
            case inspect.IntType() | inspect.FloatType():
                return self._number(kind)
            case inspect.StrType():
                return json.dumps(self._text(kind, name))
            case inspect.LiteralType():
                return json.dumps(self._rng.choice(kind.values))
            case inspect.EnumType():
                return json.dumps(self._rng.choice(list(kind.cls)).value)
            case inspect.BoolType():
                return self._rng.choice(("true", "false"))
            case inspect.NoneType():
                return "null"
            case inspect.DictType():
                return self._dict(kind, depth)
            case inspect.VarTupleType() | inspect.ListType():
                return self._items(kind, name, depth)
            case inspect.TupleType():
                items = kind.item_types[: -1 if self._rng.random() < self._odds else None]
                return "[" + ", ".join(self._value(item, name, depth + 1) for item in items) + "]"
            case inspect.AnyType() | inspect.RawType():
                return self._anything(depth)
        raise AssertionError(f"no values are known of {kind}")

    def _struct(self, kind: inspect.StructType, depth: int) -> str:
        rng = self._rng
        share = rng.choice((0.1, 0.3, 0.6)) if depth == 0 else 0.5
        made = []
        for field in kind.fields:
            present = 0.98 if field.required else share
            if rng.random() < present:
                made.append((field.encode_name, self._value(field.type, field.encode_name, depth + 1)))
        if depth == 0 and self._others and rng.random() < 0.15:
            made.append((rng.choice(self._others), self._anything(depth + 1)))
        if rng.random() < self._odds / 4 and made:
            again, _ = rng.choice(made)
            made.append((again, rng.choice(_ODD)))
        return "{" + ", ".join(f'"{name}": {value}' for name, value in made) + "}"

    def _number(self, kind: inspect.IntType | inspect.FloatType) -> str:
        low, high = _bounds(kind)
        rng = self._rng
        whole = [low, low + 1, high - 1, high, *(value for value in (0, 1, 2, 3, 16) if low <= value <= high)]
        if isinstance(kind, inspect.IntType):
            return str(int(rng.choice(whole)))
        return json.dumps(rng.choice((*map(float, whole), rng.uniform(max(low, -10), min(high, 10)))))

    def _text(self, kind: inspect.StrType, name: str) -> str:
        rng = self._rng
        text = rng.choice(HINTS[name]) if name in HINTS and rng.random() < 0.8 else rng.choice(TEXTS)
        if kind.pattern is not None and not re.search(kind.pattern, text):
            text = rng.choice(HINTS["name"])
        shortest, longest = kind.min_length or 0, kind.max_length
        return text.ljust(shortest, "x")[:longest]

    def _dict(self, kind: inspect.DictType, depth: int) -> str:
        count = self._count(kind.min_length, kind.max_length, depth)
        items = (
            f"{self._value(kind.key_type, 'key', depth + 1)}: {self._value(kind.value_type, '', depth + 1)}"
            for _ in range(count)
        )
        return "{" + ", ".join(items) + "}"

    def _items(self, kind: inspect.VarTupleType | inspect.ListType, name: str, depth: int) -> str:
        count = self._count(kind.min_length, kind.max_length, depth)
        return "[" + ", ".join(self._value(kind.item_type, name, depth + 1) for _ in range(count)) + "]"

    def _count(self, shortest: int | None, longest: int | None, depth: int) -> int:
        rng = self._rng
        if depth >= _MAX_DEPTH:
            return shortest or 0
        if longest is not None and longest <= _MAX_ITEMS and rng.random() < self._odds / 4:
            return longest + rng.randrange(2)
        return max(shortest or 0, rng.choice((0, 1, 1, 2, 3)))

    def _anything(self, depth: int) -> str:
        rng = self._rng
        if depth >= _MAX_DEPTH or rng.random() < 0.4:
            return rng.choice(_ODD)
        if rng.random() < 0.2:
            return "[" + ", ".join(self._anything(depth + 1) for _ in range(rng.randrange(3))) + "]"
        return self._schema(depth)

    def _schema(self, depth: int) -> str:
        """Much like a JSON schema, which is what most fields of any content are for."""
        rng = self._rng
        made = []
        for name in rng.sample(_SCHEMA_KEYS, rng.randrange(1, 4)):
            if rng.random() < self._odds:
                value = self._anything(depth + 1)
            elif name in _SCHEMA_VALUES:
                value = rng.choice(_SCHEMA_VALUES[name])
            elif depth >= _MAX_DEPTH:
                value = "true"
            elif name in ("anyOf", "allOf"):
                value = f"[{self._schema(depth + 1)}, {self._schema(depth + 1)}]"
            elif name in ("properties", "$defs"):
                value = f'{{"x": {self._schema(depth + 1)}, "a b": {self._schema(depth + 1)}}}'
            else:
                value = self._schema(depth + 1)
            made.append(f'"{name}": {value}')
        return "{" + ", ".join(made) + "}"

    def _beyond(self, kind: inspect.Type) -> str | None:
        """Half of the time a value just outside of a type's own bounds, where it has any."""
        rng = self._rng
        if isinstance(kind, inspect.UnionType):
            kind = rng.choice(kind.types)
        if rng.random() < 0.5:
            return None
        match kind:
            case inspect.IntType():
                low, high = _bounds(kind)
                return rng.choice((str(int(low) - 1), str(int(high) + 1), f"{int(low)}.5", f'"{int(low)}"'))
            case inspect.FloatType():
                low, high = _bounds(kind)
                return rng.choice((json.dumps(math.nextafter(low, -math.inf)), json.dumps(high + 1), "NaN"))
            case inspect.StrType(max_length=int() as longest) if longest <= 100_000:
                return json.dumps("x" * (longest + 1))
            case inspect.StrType(min_length=int() as shortest):
                return json.dumps("x" * (shortest - 1))
            case inspect.StrType(pattern=str()):
                return json.dumps(rng.choice(TEXTS))
        return None


def _bounds(kind: inspect.IntType | inspect.FloatType) -> tuple[float, float]:
    """The smallest and the largest value; the whole of 64 bits where there is none."""
    whole = isinstance(kind, inspect.IntType)
    step = 1 if whole else 1e-9
    low: Any = kind.ge if kind.ge is not None else -_INT64 if kind.gt is None else kind.gt + step
    high: Any = kind.le if kind.le is not None else _INT64 - 1 if kind.lt is None else kind.lt - step
    return low, high
