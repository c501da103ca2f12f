"""Finds backends by name through the entry-point group `swapd.backends`.

Owns nothing. Importing this module imports no backend: that happens when one is asked for.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from backends.base import Backend

GROUP = "swapd.backends"


def installed_backends() -> dict[str, Backend]:
    """Every installed backend by its name. An entry point that cannot be imported raises its own error."""
    found: dict[str, Backend] = {}
    for entry_point in entry_points(group=GROUP):
        backend: Backend = entry_point.load()()
        assert entry_point.name == backend.name, f"{entry_point.name} registers a backend named {backend.name}"
        found[backend.name] = backend
    return found
