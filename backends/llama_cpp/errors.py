"""What a request can be told went wrong, in OpenAI's envelope.

Owns the shape of the worker's error answers. Must never carry a prompt or a generated text.
"""

from __future__ import annotations

from typing import Any

import msgspec

CONTEXT_EXCEEDED = "exceed_context_size_error"
"""llama-server's error type for a prompt that is too long; clients match on it."""


class RequestError(Exception):
    """One request fails alone, for this reason. `param` names the field at fault, `details` adds envelope fields."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.details = details or {}

    def envelope(self) -> bytes:
        """The error as a JSON document."""
        fields = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": {**fields, **self.details}})


def context_exceeded(n_prompt_tokens: int, n_ctx: int, param: str) -> RequestError:
    """The prompt leaves no room for a single generated token. Both figures are tokens."""
    return RequestError(
        f"{param} has {n_prompt_tokens} tokens, but the usable context is {n_ctx}: shorten it, or raise n_ctx",
        kind=CONTEXT_EXCEEDED,
        param=param,
        code="context_length_exceeded",
        details={"n_prompt_tokens": n_prompt_tokens, "n_ctx": n_ctx},
    )


def engine_failed(message: str) -> RequestError:
    """The engine gave up on this request; nothing is wrong with what the client sent."""
    return RequestError(message, status=500, kind="server_error", code="engine_error")


def engine_unavailable(message: str) -> RequestError:
    """The engine takes no request now; another time it may."""
    return RequestError(message, status=503, kind="unavailable_error", code="engine_unavailable")
