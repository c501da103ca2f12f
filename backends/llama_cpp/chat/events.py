"""What a model's text turns out to be, piece by piece. Frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Words for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Words the model wrote to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins; what follows up to the next one are its arguments."""

    name: str
    id: str | None = None
    """The model's own name for the call, where its format has one."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the last call's arguments: together a JSON text, as the model wrote it."""

    text: str


Event = Content | Reasoning | CallStart | Arguments
