"""JSON schemas as llguidance can enforce them: every keyword is enforced, says nothing, or is refused by its path.

Owns the caps, and what is done to a schema before llguidance compiles it: references are gathered, annotations are left
out, and objects that list their properties take no others. An answer that follows the result follows the schema; the
other way round it need not be. Source: JSON Schema 2020-12, and its older spellings that are still sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeGuard
from urllib.parse import unquote

from backends.llama_cpp.chat.messages import depth
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.structured.disjoint import disjoint
from backends.llama_cpp.structured.patterns import written_out
from backends.llama_cpp.structured.schema_checks import Together, ends, multiple_units

MAX_CHARS = 64 * 1024
"""Of one schema as JSON. A level of nesting costs llguidance some kilobytes of stack; this bounds the levels, too."""
MAX_DEPTH = 64
"""Levels of arrays and objects in the schema itself. serde_json, which llguidance reads with, ends at 128."""
MAX_SUBSCHEMAS = 5000
MAX_PROPERTIES = 1000
"""Of one object. llguidance's time goes with the square: 0.1 s for a thousand."""
MAX_ALTERNATIVES = 500
"""Of one anyOf or oneOf."""
MAX_COMPARED = 20_000
"""Pairs of alternatives of all oneOf together, of which each must be shown to have no answer in common."""
MAX_COUNT = 100_000
"""What minLength, minItems and minProperties may ask for. Larger maxima are lowered to it: no context has the room."""
MAX_PATTERN = 10_000
"""Characters and classes of all patterns together, repetitions written out."""
MAX_KEY_PATTERNS = 32
"""patternProperties of one object; each is compared with each."""
MAX_TOGETHER = 12
"""Patterns, formats and lengths that one string must follow at once. llguidance's time doubles with each."""
MAX_MULTIPLE = 10_000
"""Of multipleOf, in units of its last digit, and of the product of those that hold at once."""
MAX_LITERAL_CHARS = 8192
MAX_INTEGER = 2**53
"""Beyond it llguidance's numbers, which are doubles, are not exact. Bounds further out are drawn in to it."""

WHITESPACE = r"(\n?[ \t]{0,64})"
"""What may stand between two tokens of JSON: enough to indent, not enough for a small model to get lost in."""

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"},
)
_UNENFORCED_FORMATS = frozenset(
    {
        "idn-email",
        "idn-hostname",
        "uri-reference",
        "iri",
        "iri-reference",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    }
)
"""The rest of JSON Schema's own. Any other word is an annotation by the standard: `password`, `int64`, `binary`."""

_ANYTHING: tuple[object, ...] = (True, {})


def _never(_value: object) -> bool:
    return False


_UNENFORCED: Mapping[str, Callable[[object], bool]] = {
    "not": lambda value: value is False,
    "if": _never,
    "contains": _never,
    "uniqueItems": lambda value: value is False,
    "propertyNames": lambda value: value in _ANYTHING,
    "dependentRequired": lambda value: value == {},
    "dependentSchemas": lambda value: value == {},
    "dependencies": lambda value: value == {},
    "unevaluatedProperties": lambda value: value in _ANYTHING,
    "unevaluatedItems": lambda value: value in _ANYTHING,
    "$dynamicRef": _never,
    "$recursiveRef": _never,
    "x-guidance": _never,
}
"""Keywords that restrict and cannot be enforced, and the values with which they restrict nothing."""

_MAPS = ("properties", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_APPLIED = ("$ref", "anyOf", "oneOf", "allOf")
"""What joins other schemas to the one it stands in."""

Schema = dict[str, Any]


def enforceable(schema: object, param: str) -> str:
    """The schema for llguidance, as JSON. Raises `RequestError` that names `param` and the path in it."""
    if depth(schema) > MAX_DEPTH:
        raise RequestError(f"{param} is nested deeper than {MAX_DEPTH} levels", param=param)
    length = len(json.dumps(schema))
    if length > MAX_CHARS:
        raise RequestError(f"{param} has {length} characters; {MAX_CHARS} are allowed", param=param)
    return json.dumps(Reader(schema, param).read(), ensure_ascii=False)


@dataclass(slots=True)
class Reader:
    """Reads one document. What is referred to is read once, under a name of our own."""

    document: object
    param: str
    _names: dict[str, str] = field(default_factory=dict)
    _unread: list[tuple[str, object, str]] = field(default_factory=list)
    _defs: dict[str, Any] = field(default_factory=dict)
    _open: list[Schema] = field(default_factory=list)
    """Objects that say nothing of further properties."""
    _one_of: list[tuple[Schema, str]] = field(default_factory=list)
    _joins: bool = False
    """Schemas are joined somewhere: an object must not be closed before the other part is known."""
    _subschemas: int = 0
    _patterns: int = 0

    def read(self) -> Schema:
        """The whole document, options of llguidance's included."""
        root = self._schema(self.document, self.param)
        while self._unread:
            name, schema, path = self._unread.pop()
            self._defs[name] = self._schema(schema, path)
        self._replace_one_of()
        if not self._joins:
            for schema in self._open:
                schema["additionalProperties"] = False
        whole = root if isinstance(root, dict) else {"allOf": [root]}
        if self._defs:
            whole = {**whole, "$defs": self._defs}
        self._check_ends(whole)
        self._check_together(whole)
        return {"x-guidance": {"whitespace_pattern": WHITESPACE}, **whole}

    # -- one schema ----------------------------------------------------------------------------------------

    def _schema(self, schema: object, path: str) -> Schema | bool:
        self._subschemas += 1
        if self._subschemas > MAX_SUBSCHEMAS:
            raise self._error(self.param, f"has more than {MAX_SUBSCHEMAS} schemas in it")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._error(path, "must be a schema: an object, true or false")
        made: Schema = {}
        for key, value in _modern(schema).items():
            place = f"{path}.{key}"
            allowed = _UNENFORCED.get(key)
            if allowed is not None and not allowed(value):
                raise self._error(place, "cannot be enforced; leave it out")
            self._keyword(made, key, value, place)
        return self._tidied(made, path)

    def _keyword(self, made: Schema, key: str, value: object, path: str) -> None:
        """Put one keyword into `made`; unknown ones and annotations are left out."""
        if key in _MAPS:
            made[key] = self._map(key, value, path)
        elif key in _LISTS:
            made[key] = self._list(key, value, path)
        elif key in ("items", "additionalProperties"):
            made[key] = self._schema(value, path)
        elif key == "$ref":
            made[key] = self._reference(value, path)
        elif key == "type":
            made[key] = self._type(value, path)
        elif key == "enum":
            made[key] = self._enum(value, path)
        elif key == "const":
            self._check_literal(value, path)
            made[key] = value
        elif key == "required":
            if not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
                raise self._error(path, "must be a list of names")
            made[key] = list(dict.fromkeys(value))
        elif key == "pattern":
            made[key] = self._pattern(value, path)
        elif key == "format":
            if not isinstance(value, str):
                raise self._error(path, "must be a text")
            if value in _UNENFORCED_FORMATS:
                raise self._error(path, f"cannot be enforced for {value}; leave it out")
            if value in _FORMATS:
                made[key] = value
        elif key in _COUNTS:
            made[key] = self._count(key, value, path)
        elif key in _NUMBERS:
            made[key] = self._number(key, value, path)
        elif key == "multipleOf":
            made[key] = self._multiple(value, path)

    def _tidied(self, made: Schema, path: str) -> Schema | bool:
        if "oneOf" in made:
            self._one_of.append((made, f"{path}.oneOf"))
        members = made.get("allOf")
        if members is not None and len(members) == 1 and len(made) == 1:
            only: Schema | bool = members[0]
            return only
        joined = any(key in made for key in _APPLIED) and len(made) > 1
        self._joins |= joined or len(members or ()) > 1
        if joined:
            return made
        if "type" not in made and "const" not in made and "enum" not in made:
            implied = "object" if "properties" in made else "array" if "items" in made else None
            if implied:
                made["type"] = implied
        named = made.get("properties")
        further = ("additionalProperties", "patternProperties", "minProperties", "maxProperties")
        if (
            named is not None
            and not any(key in made for key in further)
            and named.keys() >= set(made.get("required", ()))
        ):
            self._open.append(made)
        return made

    # -- keywords ------------------------------------------------------------------------------------------

    def _map(self, key: str, value: object, path: str) -> Schema:
        if not isinstance(value, dict):
            raise self._error(path, "must be an object of schemas")
        limit = MAX_PROPERTIES if key == "properties" else MAX_KEY_PATTERNS
        if len(value) > limit:
            raise self._error(path, f"has {len(value)} entries; {limit} are allowed")
        if key == "patternProperties":
            for pattern in value:
                self._pattern(pattern, path)
        return {name: self._schema(one, f"{path}.{name[:128]}") for name, one in value.items()}

    def _list(self, key: str, value: object, path: str) -> list[Schema | bool]:
        if not isinstance(value, list) or (not value and key != "prefixItems"):
            raise self._error(path, "must be a list of schemas that is not empty")
        limit = MAX_PROPERTIES if key == "prefixItems" else MAX_ALTERNATIVES
        if len(value) > limit:
            raise self._error(path, f"has {len(value)} entries; {limit} are allowed")
        return [self._schema(one, f"{path}[{index}]") for index, one in enumerate(value)]

    def _reference(self, value: object, path: str) -> str:
        if not isinstance(value, str):
            raise self._error(path, "must be a text")
        if value not in self._names:
            target = _pointed_at(self.document, value)
            if target is None:
                raise self._error(path, f"refers to {value[:128]!r}, which is not in this schema")
            self._names[value] = f"d{len(self._names)}"
            self._unread.append((self._names[value], target[0], self.param + value[1:].replace("/", ".")))
        return f"#/$defs/{self._names[value]}"

    def _type(self, value: object, path: str) -> str | list[str]:
        kinds = [value] if isinstance(value, str) else value
        if not isinstance(kinds, list) or not kinds:
            raise self._error(path, "must be the name of a type, or a list of such")
        unknown = next((kind for kind in kinds if kind not in _TYPES), None)
        if unknown is not None:
            raise self._error(path, f"is {str(unknown)[:64]!r}; the types are {', '.join(_TYPES)}")
        return value if isinstance(value, str) else list(kinds)

    def _enum(self, value: object, path: str) -> list[object]:
        if not isinstance(value, list) or not value:
            raise self._error(path, "must be a list of values that is not empty")
        for index, one in enumerate(value):
            self._check_literal(one, f"{path}[{index}]")
        return value

    def _check_literal(self, value: object, path: str) -> None:
        if isinstance(value, str) and len(value) > MAX_LITERAL_CHARS:
            raise self._error(path, f"has {len(value)} characters; {MAX_LITERAL_CHARS} are allowed")

    def _pattern(self, value: object, path: str) -> str:
        if not isinstance(value, str):
            raise self._error(path, "must be a text")
        self._patterns += written_out(value)
        if self._patterns > MAX_PATTERN:
            raise self._error(
                path,
                f"is too large: the patterns of a schema may come to {MAX_PATTERN} characters, repetitions included",
            )
        return value

    def _count(self, key: str, value: object, path: str) -> int:
        if not _is_number(value) or value < 0 or value % 1:
            raise self._error(path, "must be a whole number, 0 or more")
        if key.startswith("min") and value > MAX_COUNT:
            raise self._error(path, f"is {int(value)}; {MAX_COUNT} is the most")
        return min(int(value), MAX_COUNT)

    def _number(self, key: str, value: object, path: str) -> float:
        if not _is_number(value):
            raise self._error(path, "must be a number")
        if abs(value) <= MAX_INTEGER:
            return value
        if (value > 0) is key.lower().endswith("maximum"):
            return MAX_INTEGER if value > 0 else -MAX_INTEGER
        raise self._error(path, f"is beyond {MAX_INTEGER}, where numbers are not exact")

    def _multiple(self, value: object, path: str) -> float:
        if not _is_number(value) or value <= 0:
            raise self._error(path, "must be a number above 0")
        if multiple_units(value) > MAX_MULTIPLE:
            raise self._error(path, f"is {value}; multiples of up to {MAX_MULTIPLE} (in its last digit) are enforced")
        return value

    # -- the whole -----------------------------------------------------------------------------------------

    def _replace_one_of(self) -> None:
        """An answer must follow exactly one: that is any of them, where no two can be followed at once."""
        compared = 0
        for schema, path in self._one_of:
            options = schema.pop("oneOf")
            compared += len(options) * (len(options) - 1) // 2
            if compared > MAX_COMPARED:
                raise self._error(path, f"has too many alternatives: {MAX_COMPARED} pairs are compared")
            if not all(disjoint(one, other, self._defs) for one, other in combinations(options, 2)):
                raise self._error(path, "cannot be enforced, for an answer may follow several of them; use anyOf")
            if "anyOf" in schema:
                schema.setdefault("allOf", []).append({"anyOf": options})
            else:
                schema["anyOf"] = options

    def _check_ends(self, whole: Schema) -> None:
        if not ends(whole):
            raise self._error(self.param, "asks for an answer without an end: it requires itself again and again")

    def _check_together(self, whole: Schema) -> None:
        together = Together(self._defs)
        texts, multiple = together.of(whole)
        if texts > MAX_TOGETHER:
            raise self._error(
                self.param, f"joins {texts} patterns, formats and lengths for one text; {MAX_TOGETHER} are allowed"
            )
        if multiple > MAX_MULTIPLE:
            raise self._error(self.param, f"joins values of multipleOf whose product is beyond {MAX_MULTIPLE}")

    def _error(self, path: str, what: str) -> RequestError:
        return RequestError(f"{path} {what}", param=path)


def _is_number(value: object) -> TypeGuard[float]:
    """A finite one. To Python true and false are numbers, too, but not to JSON."""
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and finite


def _modern(schema: Schema) -> Schema:
    """The same in the words of 2020-12: lists in `items`, and exclusive bounds that are true or false."""
    made = {key: value for key, value in schema.items() if key != "additionalItems"}
    if isinstance(schema.get("items"), list):
        made["prefixItems"] = made.pop("items")
        if "additionalItems" in schema:
            made["items"] = schema["additionalItems"]
    for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(made.get(exclusive), bool) and made.pop(exclusive) and plain in made:
            made[exclusive] = made.pop(plain)
    return made


def _pointed_at(document: object, reference: str) -> tuple[object] | None:
    """What a JSON pointer into the document itself leads to (RFC 6901)."""
    if reference not in ("#", "#/") and not reference.startswith("#/"):
        return None
    for step in unquote(reference[2:]).split("/") if len(reference) > 2 else ():
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict) and key in document:
            document = document[key]
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return (document,)
