"""The program's output as lines, and what they tell of its progress. Pure but for what it remembers of the last bytes.

A line that is drawn over (a progress bar, which ends in a carriage return) is looked at, and only its last form is
passed on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

MAX_LINE_BYTES = 64 * 1024
"""A longer line is cut here."""
PER_CENT = 100.0
RAM = "RAM"
"""Host memory, by swapd's name."""
MIB = 1024 * 1024
_DEVICE = re.compile(r"[A-Za-z]+\d+")
"""CUDA0, Vulkan1: host buffers have no number."""
FRACTION = "fraction"
"""A group of this name is a part of 1."""


class Output:
    """Cuts a stream of bytes into lines. Bounded by one line."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> tuple[bytes, list[bytes]]:
        """What is to be passed on of it now, and all its lines but empty ones: those drawn over, too."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            # Of a bar that goes on being drawn only what is drawn last is needed.
            kept = self._partial.rpartition(b"\r")[2] if self._partial.rstrip(b"\r").count(b"\r") else self._partial
            if len(kept) > MAX_LINE_BYTES:
                whole.append(kept)
                kept = b""
            self._partial = kept
        shown, seen = [], []
        for line in whole:
            drawn = line.rstrip(b"\r").split(b"\r")
            shown.append(drawn[-1] + b"\n")
            seen += drawn
        # A bar that has not come to its end yet is news as well.
        if b"\r" in data:
            seen += self._partial.rstrip(b"\r").split(b"\r")[-1:]
        return b"".join(shown), [line for line in seen if line]

    def rest(self) -> bytes:
        """What is left at the end, a line without an end."""
        rest, self._partial = self._partial.rstrip(b"\r").rpartition(b"\r")[2], b""
        return rest + b"\n" if rest else b""


class Progress:
    """Reads how far the program is, from its lines."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]

    def find(self, lines: Iterable[bytes]) -> tuple[bool, float | None]:
        """Whether one of the lines tells of work done, and the part that is done by the last one to say, 0 to 1."""
        told, part = False, None
        for line in lines:
            text = line.decode("utf-8", "replace")
            for pattern in self._patterns:
                if match := pattern.search(text):
                    told = True
                    said = _part(match)
                    part = part if said is None else said
        return told, part


class Buffers:
    """Adds up what lines say has been allocated of each device."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern) if pattern else None
        self._sizes: Counter[str] = Counter()
        self._is_known = True

    def read(self, lines: Iterable[bytes]) -> None:
        """Look for such lines."""
        if self._pattern is None:
            return
        for line in lines:
            match = self._pattern.search(line.decode("utf-8", "replace"))
            if match is None:
                continue
            name = match["name"]
            # One that is cut over several devices does not say how.
            self._is_known &= "Split" not in name
            self._sizes[name if _DEVICE.fullmatch(name) else RAM] += round(float(match["mebibytes"]) * MIB)

    def device_bytes(self) -> dict[str, int]:
        """The sums; empty if there were no such lines, or some that cannot be told apart."""
        return dict(self._sizes) if self._is_known else {}


def _part(match: re.Match[str]) -> float | None:
    whole = 1.0 if FRACTION in match.re.groupindex else PER_CENT
    try:
        numbers = [float(group) for group in match.groups() if group is not None]
        part = numbers[0] / (numbers[1] if len(numbers) > 1 else whole)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return min(1.0, max(0.0, part))
