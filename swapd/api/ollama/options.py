"""`options`: which of Ollama's settings reach a worker, and by which name. Pure.

What belongs to loading a model (`num_ctx`, `num_gpu`, …) is the configuration's to say and is read over: no request
reloads a model. So are names that nobody knows, as Ollama does.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

_Count = int | float
"""JSON from JavaScript and Go has whole numbers as floats at times."""
_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class Options(msgspec.Struct, kw_only=True):
    """Those that say how tokens are chosen. Ranges are those that workers take."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: _Count | None = None
    top_p: _Share | None = None
    min_p: _Share | None = None
    typical_p: _Share | None = None
    seed: _Count | None = None
    stop: str | list[str] | None = None
    num_predict: _Count | None = None
    repeat_penalty: float | None = None
    repeat_last_n: _Count | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    mirostat: _Count | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


_WHOLE = ("top_k", "seed", "repeat_last_n", "mirostat")
_SAME = (
    "temperature", "top_p", "min_p", "typical_p", "stop", "repeat_penalty", "presence_penalty", "frequency_penalty",
    "mirostat_tau", "mirostat_eta",
)  # fmt: skip


def fields(options: Options | None) -> dict[str, Any]:
    """As fields of OpenAI's requests, with llama-server's names beside OpenAI's own."""
    if options is None:
        return {}
    found: dict[str, Any] = {name: value for name in _SAME if (value := getattr(options, name)) is not None}
    found |= {name: int(value) for name in _WHOLE if (value := getattr(options, name)) is not None}
    # -1 and -2 are "no limit" and "until the context is full", which is the same here.
    if options.num_predict is not None and options.num_predict >= 1:
        found["max_tokens"] = int(options.num_predict)
    return found
