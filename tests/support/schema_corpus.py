"""JSON schemas as clients send them, each with texts that follow it and texts that do not.

The texts have their properties in the schema's order, which is the order an enforced answer has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One schema. `good` and `bad` are JSON values; what no grammar can refuse is not listed as bad."""

    name: str
    schema: dict[str, Any]
    good: tuple[Any, ...] = ()
    bad: tuple[Any, ...] = ()


def closed(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    """An object with these properties, all required but the `optional` ones, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [key for key in properties if key not in optional],
        "additionalProperties": False,
        **more,
    }


TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TREE = closed({"value": WHOLE, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}})
CAT = closed({"kind": {"const": "cat", "type": "string"}, "lives": WHOLE})
DOG = closed({"kind": {"const": "dog", "type": "string"}, "name": TEXT})

CORPUS = (
    Case("any object", {"type": "object"}, ({}, {"a": [1, None, "x"]}), ([], "x", 1)),
    Case("closed object", closed({"a": TEXT, "b": WHOLE}), ({"a": "x", "b": 1},), ({"a": "x"}, {"a": 1, "b": 1}, {})),
    Case("optional property", closed({"a": TEXT, "b": WHOLE}, "b"), ({"a": "x"}, {"a": "", "b": -3}), ({"b": 1},)),
    Case("open object", {"type": "object", "properties": {"a": WHOLE}}, ({}, {"a": 1}), ({"a": "x"},)),
    Case(
        "map of numbers",
        {"type": "object", "additionalProperties": {"type": "number"}},
        ({"x": 1.5, "y": 2},),
        ({"x": "1"},),
    ),
    Case(
        "nested object", closed({"a": closed({"b": closed({"c": FLAG})})}), ({"a": {"b": {"c": True}}},), ({"a": {}},)
    ),
    Case("array", {"type": "array", "items": WHOLE}, ([], [1, 2]), ([1.5], {}, ["1"])),
    Case("array bounds", {"type": "array", "items": FLAG, "minItems": 1, "maxItems": 2}, ([True],), ([], [True] * 3)),
    Case(
        "tuple",
        {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2},
        (["x", 1],),
        (["x"], [1, "x"], ["x", 1, 2]),
    ),
    Case(
        "tuple with a tail",
        {"type": "array", "prefixItems": [TEXT], "items": FLAG, "minItems": 1},
        (["x"], ["x", True]),
        ([True], ["x", 1]),
    ),
    Case("enum of strings", {"enum": ["red", "green", "größe"]}, ("red", "größe"), ("blue", 1)),
    Case("enum of mixed values", {"enum": ["a", 1, None, True, [1], {"k": "v"}]}, (1, None, {"k": "v"}), ("b", False)),
    Case("constant", closed({"v": {"const": 7}}), ({"v": 7},), ({"v": 8}, {"v": "7"})),
    Case("nullable", {"type": ["string", "null"]}, ("x", None), (1,)),
    Case("any of", {"anyOf": [WHOLE, {"type": "array", "items": WHOLE}]}, (1, [1]), ("x", ["x"])),
    Case("one of disjoint types", {"oneOf": [TEXT, WHOLE]}, ("x", 1), (True,)),
    Case("one of disjoint constants", {"oneOf": [{"const": "a"}, {"const": "b"}]}, ("a", "b"), ("c",)),
    Case(
        "discriminated union",
        {
            "$defs": {"Cat": CAT, "Dog": DOG},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
        },
        ({"kind": "cat", "lives": 9}, {"kind": "dog", "name": "Rex"}),
        ({"kind": "dog", "lives": 9}, {"kind": "cow", "name": "x"}),
    ),
    Case(
        "all of",
        {"allOf": [{"type": "object", "properties": {"a": TEXT}, "required": ["a"]}, {"properties": {"b": WHOLE}}]},
        ({"a": "x", "b": 1},),
        ({"b": 1}, {"a": 1}),
    ),
    Case("reference", {"$defs": {"id": WHOLE}, **closed({"a": {"$ref": "#/$defs/id"}})}, ({"a": 1},), ({"a": "1"},)),
    Case(
        "old reference",
        {"definitions": {"p": TEXT}, "type": "array", "items": {"$ref": "#/definitions/p"}},
        (["x"],),
        ([1],),
    ),
    Case(
        "recursive tree",
        {"$defs": {"node": TREE}, "$ref": "#/$defs/node"},
        ({"value": 1, "children": [{"value": 2, "children": []}]},),
        ({"value": 1}, {"value": 1, "children": [{}]}),
    ),
    Case(
        "recursive root",
        closed({"name": TEXT, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}),
        ({"name": "a", "next": {"name": "b", "next": None}},),
        ({"name": "a", "next": {}},),
    ),
    Case("integer range", {"type": "integer", "minimum": 3, "maximum": 120}, (3, 42, 120), (2, 121, -5, 1000)),
    Case("number range", {"type": "number", "minimum": -1, "exclusiveMaximum": 2.5}, (-1, 2.4, 0), (2.5, -1.1, 30)),
    Case("multiple", {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000}, (0, 15, 995), (7, -5, 1005)),
    Case("string lengths", {"type": "string", "minLength": 2, "maxLength": 4}, ("ab", "äöüß"), ("a", "abcde")),
    Case("pattern", {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"}, ("AB-12",), ("ab-12", "AB-12345", "AB-")),
    Case("unanchored pattern", {"type": "string", "pattern": "[0-9]{3}"}, ("a123b", "999"), ("12", "a1b2c3")),
    Case("pattern of choices", {"type": "string", "pattern": r"^(\d+px|auto)$"}, ("10px", "auto"), ("px", "10 px")),
    Case("date", {"type": "string", "format": "date"}, ("2024-02-29",), ("2024-13-01", "today")),
    Case("date and time", {"type": "string", "format": "date-time"}, ("2024-02-29T12:30:00Z",), ("2024-02-29",)),
    Case("time", {"type": "string", "format": "time"}, ("12:30:00Z",), ("25:00:00Z",)),
    Case("uuid", {"type": "string", "format": "uuid"}, ("12345678-1234-1234-1234-123456789abc",), ("1234",)),
    Case("e-mail", {"type": "string", "format": "email"}, ("a.b@example.org",), ("a.b",)),
    Case("address", {"type": "string", "format": "ipv4"}, ("192.168.0.1",), ("192.168.0.256", "1.2.3")),
    Case("address of version 6", {"type": "string", "format": "ipv6"}, ("2001:db8::1",), ("2001:zz::1",)),
    Case("host", {"type": "string", "format": "hostname"}, ("example.org",), ("-x-.org",)),
    Case("link", {"type": "string", "format": "uri"}, ("https://example.org/a?b=c",), ("not a link",)),
    Case("duration", {"type": "string", "format": "duration"}, ("P1DT2H",), ("1 day",)),
    Case(
        "keys by pattern",
        {"type": "object", "patternProperties": {"^x-": WHOLE}, "additionalProperties": False},
        ({"x-a": 1}, {}),
        ({"a": 1}, {"x-a": "1"}),
    ),
    Case(
        "number of keys",
        {"type": "object", "additionalProperties": WHOLE, "minProperties": 1, "maxProperties": 2},
        ({"a": 1}, {"a": 1, "b": 2}),
        ({}, {"a": 1, "b": 2, "c": 3}),
    ),
    Case("unicode keys", closed({"größe": WHOLE, "名前": TEXT}), ({"größe": 1, "名前": "太郎 🦊"},), ({"größe": 1},)),
    Case("keys that need escapes", closed({'a"b\\c': FLAG, "d\ne": FLAG}), ({'a"b\\c': True, "d\ne": False},), ({},)),
    Case("nothing asked", {}, (1, "x", None, [{}]), ()),
    Case(
        "a booking",
        closed(
            {
                "guest": closed(
                    {"name": {"type": "string", "minLength": 1}, "email": {"format": "email", "type": "string"}}
                ),
                "nights": {"type": "integer", "minimum": 1, "maximum": 30},
                "room": {"enum": ["single", "double", "suite"]},
                "extras": {"type": "array", "items": {"enum": ["breakfast", "parking"]}, "maxItems": 2},
                "note": {"anyOf": [TEXT, {"type": "null"}], "default": None},
            },
            title="Booking",
            description="What a guest asks for.",
        ),
        (
            {
                "guest": {"name": "Ada", "email": "ada@example.org"},
                "nights": 3,
                "room": "suite",
                "extras": ["parking"],
                "note": None,
            },
        ),
        (
            {
                "guest": {"name": "", "email": "ada@example.org"},
                "nights": 3,
                "room": "suite",
                "extras": [],
                "note": None,
            },
            {
                "guest": {"name": "Ada", "email": "ada@example.org"},
                "nights": 31,
                "room": "suite",
                "extras": [],
                "note": None,
            },
        ),
    ),
)
