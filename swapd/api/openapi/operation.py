"""What is said of a route: its body, its query, its answers, and which errors it may have. Vocabulary only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from swapd import errors
from swapd.errors import SwapdError

Schema = Mapping[str, Any]
"""A JSON schema."""
Shape = type | Schema
"""A struct stands for the schema that msgspec makes of it."""

JSON, EVENTS, TEXT, HTML = "application/json", "text/event-stream", "text/plain", "text/html"
LINES, FORM = "application/x-ndjson", "multipart/form-data"
ANYTHING: Schema = {}
STRING: Schema = {"type": "string"}
BINARY: Schema = {"type": "string", "format": "binary"}


class Dialect(Enum):
    """Whose interface a route is of, which is also whose error object it has."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    LLAMA_SERVER = "llama-server"
    SWAPD = "swapd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request's body. `examples` are sound ones, by what they show."""

    shape: Shape
    examples: Mapping[str, Schema]
    kind: str = JSON
    synonyms: Mapping[str, str] = field(default_factory=dict)
    """Further names of required fields, and whose they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One parameter of a query."""

    name: str
    schema: Schema
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    `answers` are by content type; an endless one is streamed until the client leaves.
    """

    dialect: Dialect
    summary: str
    answers: Mapping[str, Shape]
    body: Body | None = None
    query: tuple[Query, ...] = ()
    errors: frozenset[type[SwapdError]] = frozenset()
    about: str = ""
    endless: bool = False
    leases: bool = False
    """A place at a worker is waited for: answers tell of the wait, and the client may lower its priority."""
    unchanged: bool = False
    """A client that says what it has of the answer is told that it has the newest (304)."""
    passes: bool = False
    """The answer may be a worker's own, with any status."""


AT_THE_DOOR = frozenset((errors.BadRequestError, errors.ForeignHostError))
"""Of every route: a name that this server does not go by, a header that cannot be."""
CHANGING = frozenset((errors.ForeignOriginError,))
"""Of every method but those that only read: pages of elsewhere may not use it."""
KEYED = frozenset((errors.UnauthorizedError, errors.ForbiddenError))
"""Of every route that a key is for, where there are keys."""
NAMING = frozenset((errors.UnknownModelError, errors.ModelForbiddenError))
"""Where a model is named."""
BODY = frozenset((errors.BodyTimeoutError, errors.BodyTooLargeError))
HELD_BODY = BODY | {errors.QueueFullError}
"""Where a body is held, which counts into what all bodies in flight may take."""
LOADING = NAMING | {
    errors.ModelDisabledError,
    errors.ModelDoesNotFitError,
    errors.InvalidModelFileError,
    errors.QueueFullError,
    errors.LoadFailedError,
    errors.ShuttingDownError,
    errors.QueueTimeoutError,
    errors.LoadTimeoutError,
}
"""Where a model is loaded if need be."""
LEASING = LOADING | {errors.ClientLimitError, errors.KeyLimitError}
"""Where a place at its worker is waited for."""
PASSING = LEASING | {errors.WorkerLostError, errors.UnsupportedEndpointError}
"""Where the worker's answer is passed on as it is."""
RELAYED = (
    HELD_BODY
    | PASSING
    | {
        errors.StructuredForbiddenError,
        errors.WorkerFailedError,
        errors.UpstreamRefusedError,
        errors.UpstreamTimeoutError,
        errors.RequestCancelledError,
    }
)
"""Of a request that is read, checked and relayed."""
