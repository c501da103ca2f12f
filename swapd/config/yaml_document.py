"""Turns YAML text into a tree of nodes that remember their lines.

Owns what of YAML is allowed: one document, string keys given once, no tags, no merge keys, bounded depth and
bounded growth through aliases. Works on the parser's events with a stack of its own, so that no nesting can
exhaust Python's. Must never construct an object from a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from swapd.config.nodes import Entry, Mapping, Node, Scalar, Sequence, value_of
from swapd.config.problems import Problems, key_part, shown

MAX_DEPTH = 24
MAX_NODES = 50_000
"""Keys and values, counting what aliases repeat."""

# libyaml reads a large file tens of times faster; the pure parser stands in where PyYAML was built without it.
FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _RefusedError(Exception):
    """The rest of the document cannot be read in a useful way."""

    def __init__(self, line: int, key: str, message: str) -> None:
        super().__init__(message)
        self.line, self.key, self.message = line, key, message


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen."""

    line: int
    key: str
    is_mapping: bool
    anchor: str | None
    nodes_before: int
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    pending: tuple[str | None, int] | None = None
    """The key that waits for its value, and its line; a refused key has no name and drops its value."""
    height: int = 1
    """Levels below this one, itself included."""


@dataclass(frozen=True, slots=True)
class _Anchored:
    node: Node
    nodes: int
    height: int


def read_document(text: str, problems: Problems, loader: Any = FastLoader) -> Mapping | None:
    """The document's top-level mapping. Notes everything that is wrong; None when there is no use reading on."""
    text = text.removeprefix("\ufeff")
    odd = _NOT_YAML.search(text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        problems.add(line, "syntax", f"the character {shown(odd[0])} is not allowed; remove it")
        return None
    try:
        root = _Builder(problems).build(yaml.parse(text, Loader=loader))
    except _RefusedError as refused:
        problems.add(refused.line, refused.key, refused.message)
        return None
    except yaml.YAMLError as error:
        problems.add(*_explain(error, text))
        return None
    if root is None or (isinstance(root, Scalar) and root.is_null):
        problems.add(1, "file", "is empty; a configuration has at least `models: {}`")
        return None
    if not isinstance(root, Mapping):
        problems.add(root.line, "file", "must be keys with values, such as `models: {}`")
        return None
    return root


def _explain(error: yaml.YAMLError, text: str) -> tuple[int, str, str]:
    """Line, key and message of a syntax error, with the usual cause where it can be guessed."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else 1
    what = str(getattr(error, "problem", None) or "cannot be read as YAML")
    lines = text.splitlines()
    source = lines[line - 1] if line <= len(lines) else ""
    indent = source[: len(source) - len(source.lstrip())]
    if "\t" in indent or ("\t" in source and "cannot start any token" in what):
        return line, "syntax", "a tab cannot indent YAML; use spaces"
    if "[::" in source:
        return line, "syntax", 'an address in brackets needs quotes: write "[::1]:8686"'
    began = getattr(error, "context_mark", None)
    since = f" (it began on line {began.line + 1})" if began and began.line + 1 != line else ""
    hint = "; put a value that contains `: ` in quotes" if "mapping values are not allowed" in what else ""
    return line, "syntax", f"{what}{since}{hint or '; check indentation, quotes and brackets here and above'}"


class _Builder:
    """Folds parser events into nodes."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._stack: list[_Open] = []
        self._anchors: dict[str, _Anchored | None] = {}
        self._nodes = 0
        self._root: Node | None = None

    def build(self, events: Iterator[Any]) -> Node | None:
        documents = 0
        for event in events:
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise _RefusedError(self._line(event), "file", "holds a second document (`---`); write one")
                case yaml.AliasEvent():
                    self._alias(event)
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._open(event)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self._close()
        return self._root

    @staticmethod
    def _line(event: Any) -> int:
        return int(event.start_mark.line) + 1

    def _here(self) -> str:
        """The key path of what comes next."""
        if not self._stack:
            return "file"
        top = self._stack[-1]
        if not top.is_mapping:
            return f"{top.key}[{len(top.items)}]"
        name = top.pending[0] if top.pending else None
        if name is None:
            return top.key or "file"
        return f"{top.key}.{key_part(name)}" if top.key else key_part(name)

    def _wants_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].is_mapping and self._stack[-1].pending is None

    def _count(self, event: Any, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _RefusedError(
                self._line(event), self._here(), f"the file comes to more than {MAX_NODES} values, aliases included"
            )

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            message = f"the tag {shown(str(event.tag))} is not supported; write the value itself, text in quotes"
            raise _RefusedError(self._line(event), self._here(), message)

    def _scalar(self, event: Any) -> None:
        self._refuse_tag(event)
        self._count(event, 1)
        scalar = Scalar(self._line(event), event.value, plain=event.style in (None, ""))
        if self._wants_key():
            self._key(scalar)
            return
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(scalar, 1, 1)
        self._place(scalar, 1)

    def _key(self, scalar: Scalar) -> None:
        top = self._stack[-1]
        if scalar.plain and scalar.text == "<<":
            message = "merge keys (<<) are not supported; use `defaults`, or an alias for a whole value"
            raise _RefusedError(scalar.line, self._here(), message)
        name: str | None = scalar.text
        path = f"{top.key}.{key_part(scalar.text)}" if top.key else key_part(scalar.text)
        if scalar.text in top.entries:
            first = top.entries[scalar.text].line
            self._problems.add(scalar.line, path, f"is given twice; the first is on line {first}")
            name = None
        elif not _is_text(scalar):
            self._problems.add(scalar.line, path, f'a key must be text; write it in quotes: "{scalar.text[:40]}"')
            name = None
        top.pending = (name, scalar.line)

    def _alias(self, event: Any) -> None:
        if self._wants_key():
            raise _RefusedError(self._line(event), self._here(), "a key cannot be an alias; write it out")
        if event.anchor not in self._anchors:
            raise _RefusedError(self._line(event), self._here(), f"no anchor named {shown(event.anchor)} above")
        target = self._anchors[event.anchor]
        if target is None:
            raise _RefusedError(self._line(event), self._here(), f"the alias {shown(event.anchor)} contains itself")
        self._count(event, target.nodes)
        self._check_depth(event, target.height)
        self._place(target.node, target.height)

    def _check_depth(self, event: Any, height: int) -> None:
        if len(self._stack) + height > MAX_DEPTH:
            raise _RefusedError(self._line(event), self._here()[:200], f"is nested more than {MAX_DEPTH} levels deep")

    def _open(self, event: Any) -> None:
        if self._wants_key():
            raise _RefusedError(self._line(event), self._here(), "a key must be text, not a list or a block")
        self._refuse_tag(event)
        self._check_depth(event, 1)
        self._count(event, 1)
        if event.anchor:
            self._anchors[event.anchor] = None
        key = self._here() if self._stack else ""
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self._stack.append(_Open(self._line(event), key, is_mapping, event.anchor, self._nodes - 1))

    def _close(self) -> None:
        done = self._stack.pop()
        node: Node
        node = Mapping(done.line, done.entries) if done.is_mapping else Sequence(done.line, tuple(done.items))
        if done.anchor:
            self._anchors[done.anchor] = _Anchored(node, self._nodes - done.nodes_before, done.height)
        self._place(node, done.height)

    def _place(self, node: Node, height: int) -> None:
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        top.height = max(top.height, height + 1)
        if not top.is_mapping:
            top.items.append(node)
            return
        assert top.pending is not None, "the parser gave a value before its key"
        name, line = top.pending
        if name is not None:
            top.entries[name] = Entry(line, node)
        top.pending = None


def _is_text(scalar: Scalar) -> bool:
    try:
        return isinstance(value_of(scalar), str)
    except ValueError:
        return False
