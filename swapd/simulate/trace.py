"""Traces of requests: who asked which model when, and what it took. Never prompts, never keys.

Owns the format: JSON lines, one request each, after a header that tells the version and what is known of the models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

VERSION = 1
MAX_REQUESTS = 1_000_000
MAX_LINE_BYTES = 4 * 1024 * 1024

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
_Name = Annotated[str, msgspec.Meta(max_length=256)]


class TraceError(ValueError):
    """A line that is no part of a trace; the message names it."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is known of one model where the trace is from. Everything may be unknown."""

    size_bytes: _Count | None = None
    """What a worker takes on all devices together."""
    load_s: _Seconds | None = None
    slots: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    """Requests that run at once."""
    tokens_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    """How fast one request's answer is written; where it is left out, the requests tell."""


class Header(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="trace", omit_defaults=True,
    forbid_unknown_fields=True,
):  # fmt: skip
    """The first line. It may come again: what a later one says of a model counts."""

    version: int = VERSION
    models: dict[_Name, ModelFacts] = {}


class Request(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="request", omit_defaults=True,
    forbid_unknown_fields=True,
):  # fmt: skip
    """One request. What is not known of it is left out."""

    at_s: Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
    """When it arrived. Only differences count: the earliest becomes 0."""
    model: _Name
    client: _Name = ""
    """A name that says who is the same client, and nothing else."""
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | None = None
    """Without one it has its model's."""
    prompt_tokens: _Count | None = None
    """Those that had to be computed, so without cached ones."""
    output_tokens: _Count | None = None
    service_s: _Seconds | None = None
    """From the grant of a place at a worker to the end."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival, the first at 0 s."""

    requests: tuple[Request, ...]
    models: Mapping[str, ModelFacts]


_decoder = msgspec.json.Decoder(Header | Request)
_encoder = msgspec.json.Encoder()


def encode(line: Header | Request) -> bytes:
    """One line of a trace, newline included."""
    return _encoder.encode(line) + b"\n"


def read(lines: Iterable[bytes]) -> Trace:
    """The trace that these lines are, in whichever order its requests come. Raises `TraceError`."""
    models: dict[str, ModelFacts] = {}
    requests: list[Request] = []
    header = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _parsed(number, line)
        if header is None and not isinstance(found, Header):
            raise TraceError(
                f"line {number}: a trace begins with a header, such as {encode(Header()).decode().strip()}"
            )
        if isinstance(found, Header):
            if found.version != VERSION:
                raise TraceError(f"line {number}: version {found.version} of the format; this swapd reads {VERSION}")
            header = found
            models.update(found.models)
        elif len(requests) == MAX_REQUESTS:
            raise TraceError(f"line {number}: a trace has at most {MAX_REQUESTS:,} requests")
        else:
            requests.append(found)
    if header is None:
        raise TraceError("line 1: the trace is empty")
    return Trace(in_order(requests), models)


def _parsed(number: int, line: bytes) -> Header | Request:
    if len(line) > MAX_LINE_BYTES:
        raise TraceError(f"line {number}: longer than {MAX_LINE_BYTES} bytes")
    try:
        found: Header | Request = _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise TraceError(f"line {number}: {error}") from None
    return found


def in_order(requests: Iterable[Request]) -> tuple[Request, ...]:
    """By arrival, the first at 0 s."""
    ordered = sorted(requests, key=lambda request: request.at_s)
    start_s = ordered[0].at_s if ordered else 0.0
    return tuple(msgspec.structs.replace(request, at_s=request.at_s - start_s) for request in ordered)
