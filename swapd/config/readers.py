"""From nodes to checked values: one small reader per kind of value.

A reader takes a `Place` and returns the value, or raises `Trouble`. Readers of whole blocks note the troubles
of their parts themselves and go on, so that one look finds all. Must never know which keys exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swapd.config.nodes import Mapping as MappingNode
from swapd.config.nodes import Node, Scalar, Sequence, Value, old_yaml_hint, shown_node, value_of
from swapd.config.problems import Problems, close_names, key_part
from swapd.config.quantities import parse_size, parse_time, spell_size, spell_time


@dataclass(frozen=True, slots=True)
class Place:
    """A node with the key path that led to it and that key's line."""

    key: str
    line: int
    node: Node


class Trouble(ValueError):  # noqa: N818 - caught and noted by this package alone, never shown as an exception
    """A value that cannot be used. `place` is where, when it lies deeper than the reader's own place."""

    def __init__(self, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.place = place


Reader = Callable[[Place, Problems], Any]


@dataclass(frozen=True, slots=True)
class Key:
    """How a key of the file becomes a field of a struct of `schema`."""

    field: str
    read: Reader


def note(problems: Problems, place: Place, error: ValueError) -> None:
    """Note what a reader raised, where it happened."""
    at = getattr(error, "place", None) or place
    problems.add(at.line, at.key, str(error))


def block(place: Place) -> dict[str, Place]:
    """The keys below a place. A key with nothing below it is an empty block."""
    if isinstance(place.node, Scalar) and place.node.is_null:
        return {}
    if not isinstance(place.node, MappingNode):
        raise Trouble(f"must be keys with values below it, not {shown_node(place.node)}")
    prefix = f"{place.key}." if place.key else ""
    return {
        name: Place(f"{prefix}{key_part(name)}", entry.line, entry.node) for name, entry in place.node.entries.items()
    }


def items(place: Place, most: int) -> list[Place]:
    """The items of a list of at most so many."""
    if not isinstance(place.node, Sequence):
        example = f": write [{place.node.text[:40]}]" if isinstance(place.node, Scalar) and place.node.text else ""
        raise Trouble(f"must be a list, not {shown_node(place.node)}{example}")
    if len(place.node.items) > most:
        raise Trouble(f"has {len(place.node.items)} items; at most {most} are allowed")
    return [Place(f"{place.key}[{index}]", node.line, node) for index, node in enumerate(place.node.items)]


def scalar(place: Place, wanted: str) -> Scalar:
    """The scalar at a place. `wanted` says what would be right."""
    if isinstance(place.node, Scalar) and not place.node.is_null:
        return place.node
    raise Trouble(f"must be {wanted}, not {shown_node(place.node)}")


def value_at(place: Place) -> Value:
    """The scalar value at a place, of whatever type it has."""
    assert isinstance(place.node, Scalar)
    try:
        return value_of(place.node)
    except ValueError as error:
        raise Trouble(str(error), place) from None


def wrong(node: Node, wanted: str) -> Trouble:
    """A trouble that says what was wanted, what was found, and the usual cause."""
    hint = old_yaml_hint(node) if isinstance(node, Scalar) else ""
    if hint in ("write true", "write false") and "true" not in wanted:
        hint = ""
    return Trouble(f"must be {wanted}, not {shown_node(node)}" + (f"; {hint}" if hint else ""))


def read_bool(place: Place, _problems: Problems) -> bool:
    value = value_at(place) if isinstance(place.node, Scalar) else None
    if isinstance(value, bool):
        return value
    raise wrong(place.node, "true or false")


def text_at(place: Place, wanted: str = "text") -> str:
    """Text as written. Numbers, booleans and null must be quoted to be text."""
    node = scalar(place, wanted)
    value = value_at(place)
    if not isinstance(value, str):
        raise Trouble(f'must be {wanted}; put the value in quotes: "{node.text[:40]}"', place)
    return value


def one_of(words: tuple[str, ...]) -> Reader:
    """One of some words."""
    wanted = f"{', '.join(words[:-1])} or {words[-1]}"

    def read(place: Place, _problems: Problems) -> str:
        text = scalar(place, wanted).text
        if text not in words:
            raise wrong(place.node, wanted)
        return text

    return read


def integer(least: int, most: int, word: str | None = None) -> Reader:
    """A whole number, both bounds inclusive; None for `word`, where there is one."""
    wanted = f"a whole number from {least} to {most}" + (f" or {word}" if word else "")

    def read(place: Place, _problems: Problems) -> int | None:
        value = value_at(place) if isinstance(place.node, Scalar) else None
        if word is not None and value == word:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wrong(place.node, wanted)
        return value

    return read


def size(least_bytes: int, most_bytes: int) -> Reader:
    """Bytes, both bounds inclusive."""

    def read(place: Place, _problems: Problems) -> int:
        text = scalar(place, "a size such as 512MiB").text
        value = parse_size(text)
        if not least_bytes <= value <= most_bytes:
            low, high = spell_size(least_bytes), spell_size(most_bytes)
            raise Trouble(f"{text} is out of range; write a size from {low} to {high}")
        return value

    return read


def time(least_s: float, most_s: float, word: str | None = None) -> Reader:
    """Seconds, both bounds inclusive; None for `word`, where there is one."""
    also = f" or {word}" if word else ""

    def read(place: Place, _problems: Problems) -> float | None:
        text = scalar(place, f"a time such as 90s{also}").text
        if text == word:
            return None
        value = parse_time(text)
        if not least_s <= value <= most_s:
            raise Trouble(
                f"{text} is out of range; write a time from {spell_time(least_s)} to {spell_time(most_s)}{also}"
            )
        return value

    return read


def read_texts(place: Place, _problems: Problems) -> tuple[str, ...]:
    """A list of distinct, non-empty strings."""
    found: list[str] = []
    for item in items(place, most=256):
        text = text_at(item)
        if not text:
            raise Trouble("must not be empty text", item)
        if text in found:
            raise Trouble(f"{text!r} is listed twice"[:120], item)
        found.append(text)
    return tuple(found)


def path_from(text: str, base_dir: Path) -> Path:
    """An absolute path: `~` is the user's home, relative paths begin at `base_dir`. Raises `ValueError`."""
    if not text:
        raise ValueError("must not be empty; write a path")
    if not text.isprintable():
        raise ValueError("has characters in its path that cannot be printed")
    try:
        return base_dir / Path(text).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home directory of a user who is not known here; write it out") from None


def directory(base_dir: Path) -> Reader:
    """A directory's absolute path; None for `auto`."""

    def read(place: Place, _problems: Problems) -> Path | None:
        text = text_at(place, "auto or a path")
        return None if text == "auto" else path_from(text, base_dir)

    return read


def unknown_key(name: str, known: Collection[str], also_known: Mapping[str, str]) -> str:
    """What to say of a key that does not exist. `also_known` maps internal field names to the file's keys."""
    if name in also_known:
        return f"is not a key of this block; write {also_known[name]}"
    return f"is not a key of this block{close_names(name, known) or '; its keys are ' + ', '.join(sorted(known))}"


def read_keys(places: Mapping[str, Place], keys: Mapping[str, Key], problems: Problems) -> dict[str, Any]:
    """Fields by name for every place whose key is known and whose value is right; notes the others."""
    fields: dict[str, Any] = {}
    by_field = {key.field: name for name, key in keys.items()}
    for name, place in places.items():
        key = keys.get(name)
        if key is None:
            problems.add(place.line, place.key, partial(unknown_key, name, keys, by_field))
            continue
        try:
            fields[key.field] = key.read(place, problems)
        except ValueError as error:
            note(problems, place, error)
    return fields


def printable_name(name: str, what: str, most_chars: int) -> None:
    """Raises `Trouble` unless the name is fit to be printed, logged and matched."""
    if not name or name != name.strip():
        raise Trouble(f"{what} must not be empty or begin or end with a space")
    if len(name) > most_chars:
        raise Trouble(f"{what} may have at most {most_chars} characters")
    if not re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", name):
        raise Trouble(f"{what} must not have control characters")
