"""The shape of a finding."""

from __future__ import annotations

from typing import Literal

import msgspec

Grade = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. `remedy` says what to do unless it is ok."""

    check: str
    grade: Grade
    said: str
    remedy: str = ""


def ok(check: str, said: str) -> Finding:
    return Finding(check=check, grade="ok", said=said)


def warn(check: str, said: str, remedy: str) -> Finding:
    return Finding(check=check, grade="warn", said=said, remedy=remedy)


def fail(check: str, said: str, remedy: str) -> Finding:
    return Finding(check=check, grade="fail", said=said, remedy=remedy)
