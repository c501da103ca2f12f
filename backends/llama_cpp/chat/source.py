"""Reading a text that arrives in pieces: a parser is a generator that yields what it found, or None for more text.

Owns the rule that makes every split of a text parse alike: nothing is decided before all of what the decision
depends on is there, or the text has ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from backends.llama_cpp.chat.events import Arguments, Content, Event, Reasoning

Result = TypeVar("Result")
Parse = Generator[Event | None, None, Result]
"""A parser: yields events, or None when it cannot go on without more text."""

MAX_HEADER_CHARS = 512
"""What precedes a call's arguments: a name, an id. Longer is no header."""


class Source:
    """The text that has not been parsed yet."""

    __slots__ = ("closed", "text")

    def __init__(self) -> None:
        self.text = ""
        self.closed = False
        """Nothing will be added."""

    def take(self, count: int) -> str:
        """Remove and return the first `count` characters."""
        taken, self.text = self.text[:count], self.text[count:]
        return taken


@dataclass(frozen=True, slots=True)
class Found:
    """A marker that was reached and taken, and the white space that stood before it."""

    space: str
    marker: str


def text_before(
    source: Source, markers: Sequence[str], make: Callable[[str], Event], *, spaces: bool = False, trim: bool = False
) -> Parse[Found | None]:
    """Take the text up to the first of `markers`, and the marker itself; None when the text ends without one.

    White space before a marker is not emitted, unless `spaces`: it is in the result. `trim` drops it at the text's end.
    """
    while True:
        start, end, certain = locate(source.text, markers, source.closed)
        length = start if spaces else len(source.text[:start].rstrip())
        if end is None and source.closed and not trim:
            length = start
        if length:
            yield make(source.take(length))
        if certain and end is not None:
            space = source.take(start - length)
            return Found(space, source.take(end - start))
        if source.closed:
            source.take(start - length)
            return None
        yield None


def until(source: Source, marker: str) -> Parse[tuple[str, bool]]:
    """Take the text up to `marker` when it is there, and the marker; at the text's end all of it, and False."""
    looked = 0
    while (start := source.text.find(marker, looked)) < 0 and not source.closed:
        # What was looked through once is not looked at again: a long text would cost its square.
        looked = max(0, len(source.text) - len(marker) + 1)
        yield None
    found = start >= 0
    text = source.take(start if found else len(source.text))
    source.take(len(marker) if found else 0)
    return text, found


def locate(text: str, markers: Sequence[str], closed: bool) -> tuple[int, int | None, bool]:
    """Where the first marker is: its start, its end, and whether more text could not change that.

    Without one, the start is where the certain text ends. Of markers at one place the longest counts.
    """
    found = [(position, -len(marker)) for marker in markers if (position := text.find(marker)) >= 0]
    start, negative_length = min(found, default=(len(text), 0))
    end: int | None = start - negative_length if found else None
    if closed:
        return start, end, True
    growing = min((position for marker in markers if (position := _growing(text, marker)) >= 0), default=len(text))
    if growing < len(text) and growing <= start:
        return growing, None, False
    return start, end, True


def _growing(text: str, marker: str) -> int:
    """Where a marker begins that the end of the text cuts off; -1 if nowhere."""
    position = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while position >= 0:
        if marker.startswith(text[position:]):
            return position
        position = text.find(marker[0], position + 1)
    return -1


def markers_in(pattern: re.Pattern[str]) -> list[str]:
    """The markers that a pattern has in it: what is in angle or square brackets, or between DeepSeek's bars."""
    plain = re.sub(r"\?P<\w+>", "", pattern.pattern).replace("\\", "")
    return re.findall(r"<[^<>\n\s=]+>|\[[A-Z_]+\]|\uff5c\w+\uff5c", plain)


def match(source: Source, pattern: re.Pattern[str]) -> Parse[re.Match[str] | None]:
    """Take what `pattern` matches at once, or nothing.

    The pattern must end in a literal, so that more text cannot change a match, and fit in `MAX_HEADER_CHARS`.
    """
    while True:
        found = pattern.match(source.text[:MAX_HEADER_CHARS])
        if found is not None:
            source.take(found.end())
            return found
        if source.closed or len(source.text) >= MAX_HEADER_CHARS:
            return None
        yield None


def skip(source: Source, *literals: str) -> Parse[str | None]:
    """Take white space and then the first of `literals` that follows; if none does, nothing. Returns which."""
    while True:
        rest = source.text.lstrip()
        for literal in literals:
            if rest.startswith(literal):
                source.take(len(source.text) - len(rest) + len(literal))
                return literal
        if source.closed or (rest and not any(literal.startswith(rest) for literal in literals)):
            return None
        yield None


def skip_space(source: Source) -> Parse[bool]:
    """Take white space. False when nothing follows it."""
    while True:
        source.text = source.text.lstrip()
        if source.text:
            return True
        if source.closed:
            return False
        yield None


class Reader:
    """One choice's parser at work."""

    def __init__(self, parse: Callable[[Source], Parse[None]]) -> None:
        self._source = Source()
        self._parser = parse(self._source)
        self._done = False

    def feed(self, text: str) -> list[Event]:
        """What the text so far has become certain to be, beyond what was told before."""
        assert not self._source.closed
        # CPython appends in place to a string that has no other owner, and copies it otherwise.
        whole, self._source.text = self._source.text, ""
        whole += text
        self._source.text = whole
        del whole
        return self._advance()

    def finish(self) -> list[Event]:
        """The rest; nothing may be fed afterwards."""
        self._source.closed = True
        events = self._advance()
        assert self._done, "a parser wants more than there is"
        assert not self._source.text, "a parser has left text over"
        return events

    def _advance(self) -> list[Event]:
        events: list[Event] = []
        for event in self._parser:
            if event is None:
                return merged(events)
            events.append(event)
        self._done = True
        return merged(events)


def merged(events: Sequence[Event]) -> list[Event]:
    """The same events with neighbours of one kind joined."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(last, Content) and isinstance(event, Content):
            joined[-1] = Content(last.text + event.text)
        elif isinstance(last, Reasoning) and isinstance(event, Reasoning):
            joined[-1] = Reasoning(last.text + event.text)
        elif isinstance(last, Arguments) and isinstance(event, Arguments):
            joined[-1] = Arguments(last.text + event.text)
        else:
            joined.append(event)
    return joined
