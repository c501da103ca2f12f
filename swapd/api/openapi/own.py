"""The daemon's own routes."""

from __future__ import annotations

from swapd import errors
from swapd.activity.shapes import DEFAULT_ROWS, DEFAULT_SINCE, GROUPINGS, MAX_ROWS, Activity, Usage
from swapd.api.admin import ProfileWish
from swapd.api.openapi.operation import (
    EVENTS,
    HELD_BODY,
    JSON,
    LOADING,
    NAMING,
    STRING,
    TEXT,
    Body,
    Dialect,
    Operation,
    Query,
)
from swapd.errors import SwapdError
from swapd.pool.status import DeviceStatus, ModelStatus, Profiles, Status, Unloaded

_TOO_MANY_VIEWS = frozenset((errors.QueueFullError,))
_DEVICE = frozenset((errors.UnknownDeviceError, errors.ShuttingDownError))
_KEPT = frozenset((errors.ActivityUnavailableError,))
_STOPPING = frozenset((errors.ShuttingDownError,))


def _read(
    summary: str, answer: type, *query: Query, raises: frozenset[type[SwapdError]] = frozenset(), about: str = ""
) -> Operation:
    return Operation(
        dialect=Dialect.SWAPD, summary=summary, about=about, query=query, answers={JSON: answer}, errors=raises
    )


def _change(summary: str, answer: type, raises: frozenset[type[SwapdError]]) -> Operation:
    return Operation(dialect=Dialect.SWAPD, summary=summary, answers={JSON: answer}, errors=raises)


def _view(summary: str) -> Operation:
    return Operation(
        dialect=Dialect.SWAPD, summary=summary, answers={EVENTS: STRING}, errors=_TOO_MANY_VIEWS, endless=True
    )


_WATCHING = {
    ("GET", "/health"): Operation(
        dialect=Dialect.SWAPD,
        summary="Whether the daemon can serve",
        answers={JSON: {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}},
        errors=_STOPPING,
    ),
    ("GET", "/ui/{name}"): Operation(
        dialect=Dialect.SWAPD,
        summary="A file of the web page",
        answers=dict.fromkeys(("text/html", "text/css", "text/javascript", "image/svg+xml"), STRING),
        errors=frozenset((errors.NotFoundError,)),
    ),
    ("GET", "/metrics"): Operation(
        dialect=Dialect.SWAPD, summary="Prometheus' metrics", answers={TEXT: STRING}, errors=frozenset()
    ),
    ("GET", "/swapd/v1/openapi.json"): Operation(
        dialect=Dialect.SWAPD, summary="This document", answers={JSON: {"type": "object", "required": ["openapi"]}}
    ),
    ("GET", "/swapd/v1/status"): _read("Devices, models, workers and requests in flight", Status),
    ("GET", "/swapd/v1/events"): _view("What the scheduler does, and why, as it happens"),
    ("GET", "/swapd/v1/requests"): _view("Each request that ends from now on"),
    ("GET", "/swapd/v1/usage"): _read(
        "What models, clients or days took",
        Usage,
        Query(name="by", schema={"enum": list(GROUPINGS), "default": GROUPINGS[0]}, about="What a row is."),
        Query(name="since", schema={**STRING, "default": DEFAULT_SINCE}, about="How far back, such as `90m` or `7d`."),
        raises=_KEPT,
    ),
    ("GET", "/swapd/v1/activity"): _read(
        "The newest requests that have ended",
        Activity,
        Query(
            name="limit",
            schema={"type": "integer", "minimum": 1, "maximum": MAX_ROWS, "default": DEFAULT_ROWS},
            about="How many rows at most.",
        ),
        raises=_KEPT,
    ),
    ("GET", "/swapd/v1/profiles"): _read("The profiles, and which one is in force", Profiles),
    ("GET", "/swapd/v1/logs/{id}"): Operation(
        dialect=Dialect.SWAPD,
        summary="The newest output lines of a model's worker",
        query=(Query(name="follow", schema={"enum": ["0", "1"], "default": "0"}, about="1: each further one, too."),),
        answers={TEXT: STRING, EVENTS: STRING},
        errors=NAMING | _TOO_MANY_VIEWS,
        endless=True,
    ),
}
_CHANGING = {
    ("PUT", "/swapd/v1/profiles/active"): Operation(
        dialect=Dialect.SWAPD,
        summary="Put a profile in force, or none",
        body=Body(shape=ProfileWish, examples={"one": {"profile": "gaming"}, "none": {"profile": None}}),
        answers={JSON: Profiles},
        errors=HELD_BODY | {errors.UnknownProfileError, errors.ShuttingDownError},
    ),
    ("POST", "/swapd/v1/models/{id}/load"): _change("Load a model and wait for it", ModelStatus, LOADING),
    ("POST", "/swapd/v1/models/{id}/unload"): _change(
        "Let a model's requests end and its workers go", ModelStatus, NAMING | _STOPPING
    ),
    ("POST", "/swapd/v1/models/{id}/pin"): _change(
        "Keep a model loaded until the daemon ends, whatever the configuration says", ModelStatus, NAMING | _STOPPING
    ),
    ("POST", "/swapd/v1/models/{id}/unpin"): _change(
        "Let a model go again when others need its room", ModelStatus, NAMING | _STOPPING
    ),
    ("POST", "/swapd/v1/unload"): _change("The same of every model that is loaded", Unloaded, _STOPPING),
    ("POST", "/swapd/v1/requests/{id}/cancel"): Operation(
        dialect=Dialect.SWAPD,
        summary="End a request that waits or runs",
        answers={
            JSON: {
                "type": "object",
                "properties": {"id": STRING, "state": {"const": "cancelled"}},
                "required": ["id", "state"],
            }
        },
        errors=frozenset((errors.NotFoundError,)),
    ),
    ("POST", "/swapd/v1/devices/{name}/pause"): _change(
        "Hand a device over to other programs, once nothing of the daemon's is on it", DeviceStatus, _DEVICE
    ),
    ("POST", "/swapd/v1/devices/{name}/resume"): _change("Use a device again", DeviceStatus, _DEVICE),
}


def operations() -> dict[tuple[str, str], Operation]:
    """By method and path."""
    return _WATCHING | _CHANGING
