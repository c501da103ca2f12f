"""llama-swap's macros: `${name}` in the text of a setting.

Owns the order in which they stand for each other: those of the environment first, then a model's own, then the file's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

KEPT = ("PORT", "PID")
"""Only known when a process starts."""
MAX_ROUNDS = 16
"""Macros within macros."""
MAX_CHARS = 64 * 1024

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
"""Variables that must not be written into a file."""
_MACRO = re.compile(r"\$\{([^{}\s]+)\}")


@dataclass(frozen=True, slots=True)
class Macros:
    values: Mapping[str, str]
    environ: Mapping[str, str]

    def for_model(self, model_id: str, own: Mapping[str, str]) -> Macros:
        return Macros({**self.values, **own, "MODEL_ID": model_id}, self.environ)

    def expanded(self, text: str) -> str:
        """The text with every macro replaced that stands for something."""
        for _ in range(MAX_ROUNDS):
            changed = _MACRO.sub(self._replacement, text)
            if changed == text or len(changed) > MAX_CHARS:
                break
            text = changed
        return text

    def _replacement(self, found: re.Match[str]) -> str:
        name = found[1]
        if name.startswith("env."):
            variable = name.removeprefix("env.")
            return found[0] if _SECRET.search(variable) else self.environ.get(variable, found[0])
        return found[0] if name in KEPT else self.values.get(name, found[0])


def left_in(text: str) -> list[str]:
    """The macros that stand for nothing and are still in a text."""
    return [name for name in _MACRO.findall(text) if name not in KEPT]


def variable_in(text: str) -> str | None:
    """The variable that is all of a text, as `${env.NAME}`."""
    found = re.fullmatch(r"\s*\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}\s*", text)
    return found[1] if found else None
