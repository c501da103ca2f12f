"""What a new configuration changes, so that a reload touches nothing else.

A pure comparison. Owns which keys make a worker start anew and which only the daemon's own restart can apply.
"""

from __future__ import annotations

from dataclasses import dataclass

from swapd.config.schema import Config, Model

RESTART_KEYS = ("backend", "settings", "env")
"""Fields of a model that its worker was started with; all others are the daemon's and apply at once."""
DAEMON_RESTART_KEYS = (
    "server.listen",
    "server.keys",
    "server.open_to_network",
    "server.otlp_endpoint",
    "server.state_dir",
    "server.runtime_dir",
)
"""Keys of the file that are used once, at the start of the daemon."""

_SECTIONS = ("server", "memory", "queue", "turns", "activity")
_NAMED_SECTIONS = ("virtual", "profiles")
_UNITS = ("_bytes", "_s")


@dataclass(frozen=True, slots=True)
class Changes:
    """Model ids by what must be done about them, each in its file's order, and changed keys outside of models."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    """Their workers are drained and replaced."""
    retuned: tuple[str, ...] = ()
    """Policy alone changed; their workers stay."""
    live: tuple[str, ...] = ()
    """Keys such as `queue.timeout` that apply at once."""
    daemon_restart: tuple[str, ...] = ()
    """Keys such as `server.listen` that apply when the daemon is restarted."""

    def __bool__(self) -> bool:
        return self != Changes()

    def __str__(self) -> str:
        """One line for the log."""
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (
                ("added", self.added),
                ("removed", self.removed),
                ("restarting", self.restart),
                ("retuned", self.retuned),
                ("changed", self.live),
                ("waiting for a restart of swapd:", self.daemon_restart),
            )
            if names
        ]
        return "; ".join(parts) or "nothing changed"


def diff(old: Config, new: Config) -> Changes:
    """What must be done to get from `old` to `new`. The order of models, and the path, are no changes."""
    kept = [(old.models[model_id], model) for model_id, model in new.models.items() if model_id in old.models]
    keys = _changed_keys(old, new)
    return Changes(
        added=tuple(model_id for model_id in new.models if model_id not in old.models),
        removed=tuple(model_id for model_id in old.models if model_id not in new.models),
        restart=tuple(after.id for before, after in kept if needs_restart(before, after)),
        retuned=tuple(a.id for b, a in kept if b != a and not needs_restart(b, a)),
        live=tuple(key for key in keys if key not in DAEMON_RESTART_KEYS),
        daemon_restart=tuple(key for key in keys if key in DAEMON_RESTART_KEYS),
    )


def needs_restart(old: Model, new: Model) -> bool:
    """Whether a worker of `old` cannot serve as a worker of `new`."""
    return any(getattr(old, key) != getattr(new, key) for key in RESTART_KEYS)


def _changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys of the file, outside of models, whose values differ; whole entries of sections with names."""
    changed: list[str] = []
    for section in _SECTIONS:
        before, after = getattr(old, section), getattr(new, section)
        for field in after.__struct_fields__:
            if getattr(before, field) != getattr(after, field):
                key = f"{section}.{_file_key(section, field)}"
                changed += [key] if key not in changed else []
    for section in _NAMED_SECTIONS:
        before, after = getattr(old, section), getattr(new, section)
        changed += [f"{section}.{name}" for name in {**before, **after} if before.get(name) != after.get(name)]
    return changed


def _file_key(section: str, field: str) -> str:
    if (section, field) == ("memory", "default"):
        return "budget"
    for unit in _UNITS:
        field = field.removesuffix(unit)
    return field
