"""The parameters other servers know and this worker does not have: refused by name unless they are off.

Owns the table. A companion of a switch that is in the table (`xtc_threshold` beside `xtc_probability`) is not
listed: while its switch is off it changes nothing. Fields in neither list are unknown and ignored.
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


def _is_text_format(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


_NEVER = _one_of()
_FALSE = _one_of(False)
_ZERO = _one_of(0, False)
_EMPTY = _one_of([], {}, "")

_SAMPLERS: dict[str, Off] = {
    "typical_p": _one_of(1),
    "top_n_sigma": _at_most(0),
    "xtc_probability": _at_most(0),
    "dynatemp_range": _at_most(0),
    "mirostat": _ZERO,
    "dry_multiplier": _at_most(0),
    "adaptive_target": lambda value: isinstance(value, int | float) and value < 0,
    "min_keep": _at_most(1),
    "samplers": _NEVER,
    "n_indent": _at_most(0),
    "t_max_predict_ms": _at_most(0),
    "reasoning_budget_tokens": _one_of(-1),
    "thinking_budget_tokens": _one_of(-1),
    "lora": _EMPTY,
}
_STRUCTURE: dict[str, Off] = {
    "grammar": _EMPTY,
    "json_schema": _NEVER,
    "response_format": _is_text_format,
}
_LOGPROBS: dict[str, Off] = {
    "logprobs": _ZERO,
    "top_logprobs": _ZERO,
    "n_probs": _ZERO,
}

CHAT: Mapping[str, Off] = {
    **_SAMPLERS,
    **_STRUCTURE,
    **_LOGPROBS,
    "functions": _EMPTY,
    "function_call": _one_of("none", "auto", ""),
    "modalities": _one_of([], ["text"]),
    "audio": _EMPTY,
}
COMPLETION: Mapping[str, Off] = {
    **_SAMPLERS,
    **_STRUCTURE,
    **_LOGPROBS,
    "best_of": _one_of(1),
    "echo": _FALSE,
    "suffix": _EMPTY,
}

INFILL: Mapping[str, Off] = {
    name: is_off for name, is_off in COMPLETION.items() if name not in ("n_indent", "t_max_predict_ms")
}
"""Filling gaps ends by these two itself."""


def refuse_unsupported(fields: Mapping[str, msgspec.Raw], table: Mapping[str, Off]) -> None:
    """Raise a `RequestError` for the first field of `table` that `fields` switches on. Null is off."""
    for name, is_off in table.items():
        value = msgspec.json.decode(fields[name]) if name in fields else None
        if value is not None and not is_off(value):
            raise RequestError(f"{name} is not supported yet; leave it out", param=name, code="unsupported_parameter")
