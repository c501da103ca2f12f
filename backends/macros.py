"""`${NAME}` in the words of a command: finds and replaces them. Pure text.

Owns the form of a macro. What the names mean is said by whoever replaces them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_MACRO = re.compile(r"\$\{([^{}]*)\}")


def macro_names(text: str) -> set[str]:
    return set(_MACRO.findall(text))


def expand(text: str, values: Mapping[str, str]) -> str:
    """The text with the macros that have values replaced, once: values are not looked into."""
    return _MACRO.sub(lambda found: values.get(found[1], found[0]), text)


def unknown_macro(texts: Iterable[str], known: Iterable[str]) -> str | None:
    """The first macro that is none of these."""
    names = set(known)
    return next((name for text in texts for name in sorted(macro_names(text) - names)), None)
