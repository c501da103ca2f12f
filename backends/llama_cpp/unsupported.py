"""The parameters other servers know and this worker does not have: refused by name unless they are off.

Owns the table. A companion of a switch in the table (`reasoning_budget_message`) is not listed: while its switch is off
it changes nothing. Fields in neither list are unknown and ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from backends.llama_cpp.errors import RequestError

Off = Callable[[object], bool]
"""Whether a value means the same as leaving the field out."""


def _one_of(*values: object) -> Off:
    return lambda value: value in values


def _at_most(limit: float) -> Off:
    return lambda value: isinstance(value, int | float) and value <= limit


_NEVER = _one_of()
_FALSE = _one_of(False)
_EMPTY = _one_of([], {}, "")

_GENERATION: dict[str, Off] = {
    "post_sampling_probs": _FALSE,
    "n_indent": _at_most(0),
    "t_max_predict_ms": _at_most(0),
    "reasoning_budget_tokens": _one_of(-1),
    "thinking_budget_tokens": _one_of(-1),
    "lora": _EMPTY,
}
_LAZY_GRAMMARS: dict[str, Off] = {
    "grammar_lazy": _FALSE,
    "grammar_triggers": _EMPTY,
}

CHAT: Mapping[str, Off] = {
    **_GENERATION,
    **_LAZY_GRAMMARS,
    "functions": _EMPTY,
    "function_call": _one_of("none", "auto", ""),
    "modalities": _one_of([], ["text"]),
    "audio": _EMPTY,
}
COMPLETION: Mapping[str, Off] = {
    **_GENERATION,
    **_LAZY_GRAMMARS,
    "best_of": _one_of(1),
    "echo": _FALSE,
    "suffix": _EMPTY,
}

NATIVE: Mapping[str, Off] = {
    name: is_off for name, is_off in COMPLETION.items() if name not in ("n_indent", "t_max_predict_ms")
}
"""/completion and /infill: what they answer ends by these two."""


def refuse_unsupported(fields: Mapping[str, msgspec.Raw], table: Mapping[str, Off]) -> None:
    """Raise a `RequestError` for the first field of `table` that `fields` switches on. Null is off."""
    for name, is_off in table.items():
        value = msgspec.json.decode(fields[name]) if name in fields else None
        if value is not None and not is_off(value):
            raise RequestError(f"{name} is not supported yet; leave it out", param=name, code="unsupported_parameter")
