"""From tokens to text, a token at a time: whole characters only, nothing a stop string may still take back.

Pure: bytes in, text out. Must never look at sampling or at the model.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one choice as it grows."""

    __slots__ = ("_decoder", "_held", "_stops", "sent", "stopped_by")

    def __init__(self, stops: Sequence[str]) -> None:
        self.sent = 0
        """Characters of the text that were returned."""
        self.stopped_by: str | None = None
        """The stop string that has ended it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stops = tuple(stop for stop in stops if stop)

    @property
    def whole(self) -> int:
        """Characters so far, returned or held back. What is pushed next has a part in the one of this number."""
        return self.sent + len(self._held)

    def push(self, piece: bytes) -> tuple[str, bool]:
        """Take in one token's bytes. Returns the text that is now certain, and whether a stop string ended it."""
        text, stopped = self._certain(self._decoder.decode(piece))
        self.sent += len(text)
        return text, stopped

    def _certain(self, text: str) -> tuple[str, bool]:
        if not text or not self._stops:
            return text, False
        text = self._held + text
        cut = find_stop(text, self._stops)
        if cut is not None:
            self._held = ""
            self.stopped_by = max((stop for stop in self._stops if text.startswith(stop, cut)), key=len)
            return text[:cut], True
        safe = len(text) - held_back(text, self._stops)
        self._held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """The text still held when the choice ends for another reason. Half a character becomes U+FFFD."""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        text = text[: find_stop(text, self._stops)]
        self.sent += len(text)
        return text


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop string begins in `text`."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string may be beginning."""
    longest = 0
    for stop in stops:
        position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while position >= 0:
            if stop.startswith(text[position:]):
                longest = max(longest, len(text) - position)
                break
            position = text.find(stop[0], position + 1)
    return longest
