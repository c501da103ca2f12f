"""Where in a configuration's text a key stands, for verdicts that are reached after it was read."""

from __future__ import annotations

from collections.abc import Sequence

from swapd.config.nodes import Mapping
from swapd.config.problems import Problems
from swapd.config.yaml_document import read_document


def line_of(text: str, keys: Sequence[str]) -> int:
    """The line of the nested key, or of the deepest part of its path that is there (an inherited default is not)."""
    node = read_document(text, Problems())
    line = 1
    for key in keys:
        entry = node.entries.get(key) if isinstance(node, Mapping) else None
        if entry is None:
            break
        line = entry.line
        node = entry.node if isinstance(entry.node, Mapping) else None
    return line
