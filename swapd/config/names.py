"""Who has which name: every id and alias of the file leads to one thing.

Owns that rule across models and virtual models. Must never read what a name stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from swapd.config.nodes import Mapping as MappingNode
from swapd.config.nodes import Scalar, Sequence
from swapd.config.problems import Problems, close_names, shown
from swapd.config.readers import Place, block, items

Kind = Literal["model", "virtual"]


@dataclass(slots=True)
class Names:
    """Filled block by block; a name belongs to whoever claimed it first, ids before aliases."""

    _taken: dict[str, tuple[int, str]] = field(default_factory=dict)
    _kinds: dict[str, Kind] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)

    def claim(self, entries: Mapping[str, Place], kind: Kind, problems: Problems) -> None:
        """Take the ids and aliases of a block of entries. A clash is noted and names both lines."""
        for entry_id, place in entries.items():
            self._take(entry_id, entry_id, place, kind, problems)
        for entry_id, place in entries.items():
            own: set[str] = set()
            for name, alias in _aliases(place):
                if name not in own:
                    self._take(name, entry_id, alias, kind, problems)
                own.add(name)

    def _take(self, name: str, entry_id: str, place: Place, kind: Kind, problems: Problems) -> None:
        here = (place.line, place.key)
        line, key = self._taken.setdefault(name, here)
        if (line, key) == here:
            self._kinds[name] = kind
            self._ids[name] = entry_id
        else:
            problems.add(place.line, place.key, f"{shown(name)} is taken by {key} on line {line}")

    def kind(self, name: str) -> Kind | None:
        """What a name stands for; None if nothing has it."""
        return self._kinds.get(name)

    def id_of(self, name: str) -> str:
        """The id of what a known name stands for."""
        return self._ids[name]

    def unknown(self, name: str) -> str:
        """What to say of a name that nothing has."""
        return f"no model has the name {shown(name)}{close_names(name, self._taken)}"


def _aliases(place: Place) -> Iterator[tuple[str, Place]]:
    """What is written as aliases in an entry, as far as it can be read."""
    if not isinstance(place.node, MappingNode):
        return
    aliases = block(place).get("aliases")
    if aliases is None:
        return
    if isinstance(aliases.node, MappingNode):
        yield from block(aliases).items()
    elif isinstance(aliases.node, Sequence):
        for item in items(aliases, most=len(aliases.node.items)):
            if isinstance(item.node, Scalar):
                yield item.node.text, item
