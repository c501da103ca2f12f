"""Which of several things hold, where whether one holds depends on which others do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping


def least_fixpoint(uses: Mapping[str, Iterable[str]], holds: Callable[[str, set[str]], bool]) -> set[str]:
    """The smallest set of names such that `holds` is true for each of them, given the others.

    `uses` has for each name those it depends on. `holds` is asked again about a name only when one of these has joined.
    """
    users: dict[str, list[str]] = {}
    for name, used in uses.items():
        for one in set(used):
            users.setdefault(one, []).append(name)
    found: set[str] = set()
    todo = list(uses)
    while todo:
        name = todo.pop()
        if name not in found and holds(name, found):
            found.add(name)
            todo += users.get(name, ())
    return found
