"""Whether a request has a grammar or a schema of its own compiled for it: work that a client can make as heavy as it
likes, on the CPU of the worker that all share.

Owns the list of fields that do, in OpenAI's dialect, llama.cpp's, vLLM's and SGLang's. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GRAMMAR_FIELDS = (
    "grammar",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "regex",
    "ebnf",
)
"""Each is one as soon as it says anything."""


def constrained_by(fields: Mapping[str, Any]) -> str | None:
    """The first field that has one compiled; None for a request that is answered freely, or by JSON of any shape.

    A tool that may be called, and whose arguments are not strict, is what a model is told, and counts as free.
    """
    for name in GRAMMAR_FIELDS:
        if fields.get(name) not in (None, "", {}, []):
            return name
    form = fields.get("response_format")
    if isinstance(form, dict) and (form.get("type") not in ("text", "json_object") or "schema" in form):
        return "response_format"
    if fields.get("tools") and fields.get("tool_choice") not in (None, "none", "auto"):
        return "tool_choice"
    for index, tool in enumerate(fields.get("tools") or ()):
        function = tool.get("function")
        if isinstance(function, dict) and function.get("strict"):
            return f"tools[{index}].function.strict"
    return None
