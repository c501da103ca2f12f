"""What is wrong with a configuration, collected in one pass and printed one line each.

Owns the line `FILE:LINE: key: message` and its bounds. Must never carry whole values: they are quoted in part
and escaped, because these lines go to terminals, logs and the status page.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_PROBLEMS = 20
"""Kept and printed; further ones are only counted."""
MAX_SHOWN_CHARS = 60
MAX_MESSAGE_CHARS = 1000


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing to correct. `key` is a dotted path such as `models.qwen3-8b.n_ctx`, or `file` or `syntax`."""

    line: int
    key: str
    message: str


class ConfigError(Exception):
    """A configuration that cannot be used. `problems` is bounded; `dropped` counts those beyond the bound."""

    def __init__(self, path: Path, problems: Iterable[Problem], dropped: int = 0) -> None:
        self.path = path
        self.problems = tuple(problems)
        self.dropped = dropped
        super().__init__(str(self))

    def __str__(self) -> str:
        path = printable(str(self.path))
        lines = [f"{path}:{problem.line}: {problem.key}: {problem.message}" for problem in self.problems]
        if self.dropped:
            lines.append(f"{path}: and {self.dropped} more")
        return "\n".join(lines)


class Problems:
    """Collects problems while a configuration is read, so that one look shows them all."""

    def __init__(self) -> None:
        self._kept: set[Problem] = set()
        self._dropped = 0

    def __bool__(self) -> bool:
        return bool(self._kept)

    def add(self, line: int, key: str, message: str | Callable[[], str]) -> None:
        """Note one problem. The same one twice (a default that every model inherits) counts once.

        A message that takes work, such as a search for close names, is given as a function: beyond the bound it
        is never called, so that a file of nothing but mistakes is refused in good time.
        """
        if callable(message):
            message = "" if len(self._kept) >= MAX_PROBLEMS else message()
        problem = Problem(line, printable(key), printable(message)[:MAX_MESSAGE_CHARS])
        if problem in self._kept:
            return
        if len(self._kept) < MAX_PROBLEMS:
            self._kept.add(problem)
        else:
            self._dropped += 1

    def raise_if_any(self, path: Path) -> None:
        """Raises `ConfigError` with everything noted so far, in the file's order."""
        if self._kept:
            raise ConfigError(path, sorted(self._kept), self._dropped)


def printable(text: str) -> str:
    """The text with everything escaped that could break a line or speak to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """A value for a message: quoted, escaped, cut."""
    return repr(text) if len(text) <= MAX_SHOWN_CHARS else repr(text[:MAX_SHOWN_CHARS]) + "…"


def key_part(name: str) -> str:
    """One part of a key path, safe to print."""
    return name if name and name.isprintable() and len(name) <= MAX_SHOWN_CHARS else shown(name)


def close_names(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing when no name is close."""
    close = difflib.get_close_matches(name[:MAX_SHOWN_CHARS], list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
