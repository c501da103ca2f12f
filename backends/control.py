"""The control channel: what an embedded worker tells the daemon, as one JSON object per line.

The daemon makes a socket pair and the worker inherits one end. The worker writes the messages below and
reads nothing but end of file, at which it exits at once: that is how nothing outlives the daemon.
Owns the messages and their encoding; must never block or open anything.
"""

from __future__ import annotations

from enum import Enum

import msgspec

MAX_LINE_BYTES = 64 * 1024
"""A longer line is a defect of the worker; the daemon drops the worker rather than buffer it."""


class FailureKind(Enum):
    """Why a load ended without a ready worker, as far as the worker can tell."""

    INVALID_MODEL = "invalid_model"
    """Permanent until the file or the settings change."""
    FAILED = "failed"
    """May work another time: out of memory, a device that is gone."""


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The load moved. `progress` runs from 0 to 1; None where only that it goes on is known."""

    progress: float | None = None


class WarmingUp(msgspec.Struct, frozen=True, tag="warming_up"):
    """Weights are in; the first decode is about to run. A crash from here to `Ready` hints at the CPU."""


class Buffers(msgspec.Struct, frozen=True, tag="buffers"):
    """What the engine itself says that it has allocated, by device: all of it, sent once before `Ready`. What a process
    and a driver take beside is not in it."""

    device_bytes: dict[str, int]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker accepts requests on its socket."""

    n_ctx: int
    slots: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The load failed for a reason the worker could name; it exits right after."""

    kind: FailureKind
    message: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Micro-batches finished since the start. Sent while requests run, at most a few times a second."""

    batches: int


class Usage(msgspec.Struct, frozen=True, tag="usage"):
    """Tokens of one request, sent once when it ends for any reason (also on disconnect)."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


Message = Loading | WarmingUp | Buffers | Ready | Failed | Progress | Usage

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """One line, newline included."""
    return _encoder.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """The message on one line. Raises `msgspec.MsgspecError` for anything else."""
    message: Message = _decoder.decode(line)
    return message
