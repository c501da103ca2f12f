"""Reads a backend's own model keys into its settings struct and says in plain words what does not fit.

The struct's types are the only source of what is allowed; nothing here knows a key of any backend.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect, structs

from backends.base import Settings, decode_path
from swapd.config.nodes import Mapping as MappingNode
from swapd.config.nodes import Scalar, Sequence
from swapd.config.problems import Problems, key_part
from swapd.config.quantities import parse_size, parse_time
from swapd.config.readers import Place, Trouble, block, note, path_from, value_at, wrong

_ERROR_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]")
_KEY_TROUBLE = re.compile(
    r"Object (?:contains unknown field `(?P<unknown>.*?)`|missing required field `(?P<missing>.*?)`)"
)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@cache
def setting_names(settings_type: type[Settings]) -> Mapping[str, structs.FieldInfo]:
    """The keys a backend knows, in the order it declares them."""
    return {field.encode_name: field for field in structs.fields(settings_type)}


def read_settings(
    settings_type: type[Settings], places: Mapping[str, Place], owner: Place, base_dir: Path, problems: Problems
) -> Settings | None:
    """The settings that `places` spell out, or None after noting what is wrong.

    `owner` is the model's own place, for what no single key is to blame for. Relative paths begin at `base_dir`.
    """
    known = setting_names(settings_type)
    values: dict[str, Any] = {}
    sound = True
    for name, place in places.items():
        try:
            values[name] = read_setting(known[name], place, base_dir)
        except ValueError as error:
            note(problems, place, error)
            sound = False
    for name, field in known.items():
        if field.required and name not in places:
            message = f"is missing; write `{name}:` with {describe(field.type)}"
            problems.add(owner.line, f"{owner.key}.{name}", message)
            sound = False
    if not sound:
        return None
    try:
        return settings_type(**{known[name].name: value for name, value in values.items()})
    except (ValueError, TypeError) as error:
        blamed = next((places[word] for word in _WORD.findall(str(error)) if word in places), owner)
        problems.add(blamed.line, blamed.key, str(error))
        return None


def read_setting(field: structs.FieldInfo, place: Place, base_dir: Path) -> Any:
    """One key's value in the type its backend declares. Raises `Trouble`."""
    troubles: list[str] = []

    def decode(kind: type, value: object) -> object:
        decoded = decode_path(kind, value)
        if not isinstance(decoded, Path) or not isinstance(value, str):
            return decoded
        try:
            return path_from(value, base_dir)
        except ValueError as error:
            troubles.append(str(error))
            raise

    plain = _plain(field.type, place)
    try:
        return msgspec.convert(plain, field.type, strict=True, dec_hook=decode)
    except msgspec.ValidationError as error:
        at = _locate(place, str(error))
        if troubles:
            raise Trouble(troubles[0], at) from None
        unfit = _KEY_TROUBLE.match(str(error))
        if unfit:
            raise Trouble(
                f"has no key {unfit['unknown']}" if unfit["unknown"] else f"needs {unfit['missing']}", at
            ) from None
        raise Trouble(str(wrong(at.node, describe(_type_at(field.type, str(error))))), at) from None


_PARSERS: Mapping[str, Callable[[str], float]] = {"bytes": parse_size, "seconds": parse_time}
"""By the unit that a backend's type declares (`backends.base.Size`, `Duration`)."""


def _plain(kind: Any, place: Place) -> Any:
    """The node as Python's own types, sizes and times as numbers where the type has a unit."""
    info = inspect.type_info(kind)
    if isinstance(info, inspect.DictType) and isinstance(place.node, MappingNode) and _unit(info.value_type):
        inner = kind.__args__[1]
        return {name: _below(inner, each) for name, each in block(place).items()}
    struct = next((one.cls for one in _members(info) if isinstance(one, inspect.StructType)), None)
    if struct is not None and isinstance(place.node, MappingNode):
        types = {field.encode_name: field.type for field in structs.fields(struct)}
        return {
            name: _below(types[name], each) if name in types else _builtins(each) for name, each in block(place).items()
        }
    return _measured(kind, place) if isinstance(place.node, Scalar) else _builtins(place)


def _below(kind: Any, place: Place) -> Any:
    """The same of a place below the key's own, which is where a mistake is then. Raises `Trouble`."""
    try:
        return _plain(kind, place)
    except Trouble:
        raise
    except ValueError as error:
        raise Trouble(str(error), place) from None


def _measured(kind: Any, place: Place) -> Any:
    """A scalar's value, read with its unit where the type has one; a word such as auto stays a word."""
    assert isinstance(place.node, Scalar)
    info = inspect.type_info(kind)
    words = {word for member in _members(info) if isinstance(member, inspect.LiteralType) for word in member.values}
    unit = _unit(info)
    if unit is None or place.node.is_null or place.node.text in words:
        return _builtins(place)
    return _PARSERS[unit](place.node.text)


def _members(info: inspect.Type) -> tuple[inspect.Type, ...]:
    return info.types if isinstance(info, inspect.UnionType) else (info,)


def _unit(info: inspect.Type) -> str | None:
    if isinstance(info, inspect.UnionType):
        return next((unit for member in info.types if (unit := _unit(member))), None)
    return (info.extra or {}).get("unit") if isinstance(info, inspect.Metadata) else None


def _builtins(place: Place) -> Any:
    """The node as Python's own types, for msgspec."""
    match place.node:
        case Scalar():
            return value_at(place)
        case Sequence(items=nodes):
            return [_builtins(Place(f"{place.key}[{index}]", node.line, node)) for index, node in enumerate(nodes)]
        case MappingNode(entries=entries):
            return {
                name: _builtins(Place(f"{place.key}.{key_part(name)}", entry.line, entry.node))
                for name, entry in entries.items()
            }


def _locate(place: Place, message: str) -> Place:
    """Follow msgspec's error path down the nodes, as far as it can be followed."""
    match = _ERROR_PATH.search(message)
    for name, index in _PATH_STEP.findall(match["path"]) if match else ():
        node = place.node
        if name and isinstance(node, MappingNode) and name in node.entries:
            entry = node.entries[name]
            place = Place(f"{place.key}.{key_part(name)}", entry.line, entry.node)
        elif index and isinstance(node, Sequence) and int(index) < len(node.items):
            item = node.items[int(index)]
            place = Place(f"{place.key}[{index}]", item.line, item)
        else:
            break
    return place


def _type_at(kind: Any, message: str) -> Any:
    """Follow msgspec's error path down the types, as far as it can be followed."""
    info = inspect.type_info(kind)
    match = _ERROR_PATH.search(message)
    for name, index in _PATH_STEP.findall(match["path"]) if match else ():
        if index and isinstance(info, inspect.VarTupleType | inspect.ListType):
            info = info.item_type
        elif name and isinstance(info, inspect.StructType):
            info = next(field.type for field in info.fields if field.encode_name == name)
        else:
            break
    return info


def describe(kind: Any) -> str:
    """A type in the words of someone who writes YAML: `auto or a whole number from 0 to 128`."""
    info = kind if isinstance(kind, inspect.Type) else inspect.type_info(kind)
    match info:
        case inspect.Metadata(extra={"unit": "bytes"}):
            return "a size such as 512MiB"
        case inspect.Metadata(extra={"unit": "seconds"}):
            return "a time such as 250ms"
        case inspect.Metadata(type=inner):
            return describe(inner)
        case inspect.UnionType() | inspect.LiteralType() | inspect.BoolType():
            choices = _choices(info)
            return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
        case inspect.IntType():
            return f"a whole number{_bounds(info)}"
        case inspect.FloatType():
            return f"a number{_bounds(info)}"
        case inspect.StrType():
            return "text"
        case inspect.NoneType():
            return "null"
        case inspect.CustomType(cls=cls) if cls is Path:
            return "a path"
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return f"a list, each item {describe(item)}"
        case inspect.StructType(fields=fields):
            return f"a block with {' and '.join(field.encode_name for field in fields)}"
        case inspect.DictType():
            return "a block of keys"
        case _:
            return "another kind of value"


def _choices(info: inspect.Type) -> list[str]:
    """What may be written, one by one, with nested unions laid flat."""
    match info:
        case inspect.UnionType(types=types):
            return [choice for each in types for choice in _choices(each)]
        case inspect.LiteralType(values=values):
            return [str(value) for value in values]
        case inspect.BoolType():
            return ["true", "false"]
        case _:
            return [describe(info)]


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    low = f"{info.ge:g}" if isinstance(info.ge, float) else info.ge
    high = f"{info.le:g}" if isinstance(info.le, float) else info.le
    above = f" above {info.gt}" if info.gt is not None else ""
    below = f" below {info.lt}" if info.lt is not None else ""
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return (f" of at least {low}" if low is not None else above) + (
        f" of at most {high}" if high is not None else below
    )
