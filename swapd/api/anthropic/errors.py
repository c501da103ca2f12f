"""Anthropic's error object. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swapd.errors import SwapdError

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def of(error: SwapdError) -> dict[str, Any]:
    """Of an error of the daemon's own."""
    return translated(error.status, error.envelope())


def translated(status: int, envelope: Mapping[str, Any]) -> dict[str, Any]:
    """Of OpenAI's error object, whose `code` it keeps: that says more than a type."""
    told = envelope.get("error")
    error = told if isinstance(told, Mapping) else {}
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    made: dict[str, Any] = {"type": kind, "message": _message(error)}
    if error.get("code"):
        made["code"] = error["code"]
    return {"type": "error", "error": made}


def _message(error: Mapping[str, Any]) -> str:
    message = str(error.get("message") or "the worker gave no reason")
    tokens, limit = error.get("n_prompt_tokens"), error.get("n_ctx")
    if isinstance(tokens, int) and isinstance(limit, int):
        # Anthropic's own words: Claude Code knows by them that it has to compact the conversation.
        return f"prompt is too long: {tokens} tokens > {limit} maximum ({message})"
    return message
