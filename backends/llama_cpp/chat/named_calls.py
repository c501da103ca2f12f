"""Calls with a header and JSON arguments: DeepSeek, newer Mistral, Kimi K2, Functionary.

Owns the parser of `OPEN name SEPARATOR {…} CLOSE`, inside a section's markers where the family has one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from backends.llama_cpp.chat.events import Arguments, CallStart, Content
from backends.llama_cpp.chat.json_text import JsonSpan, Span
from backends.llama_cpp.chat.source import Parse, Source, markers_in, match, skip, skip_space, text_before
from backends.llama_cpp.chat.tools import Call, Tools


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """A family whose calls begin with a name."""

    open: str
    """What announces one call."""
    header: re.Pattern[str]
    """From there to the arguments: groups `name` and, where the family has it, `id`. Ends in a literal."""
    prefix: str
    """The same for writing: text before the name."""
    separator: str
    """… and after it."""
    close: str = ""
    """What ends one call."""
    fence: str = ""
    """What may stand between the arguments and that."""
    section: tuple[str, str] = ("", "")
    """What is around all calls of an answer."""

    @property
    def visible(self) -> tuple[str, ...]:
        """The markers that may be control tokens."""
        fixed = (self.open, self.close, *self.section)
        return (*filter(None, fixed), *markers_in(self.header))

    @property
    def openers(self) -> tuple[str, ...]:
        """What a call begins with."""
        return (self.section[0], self.open) if self.section[0] else (self.open,)

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as the family writes them."""
        begin, end = self.section
        written = (
            f"{self.open}{self.prefix}{name}{self.separator}{json.dumps(arguments, ensure_ascii=False)}"
            f"{self.fence}{self.close}"
            for name, arguments in calls
        )
        return begin + "".join(written) + end

    def parse(self, source: Source, tools: Tools) -> Parse[None]:
        """Content and calls until the text ends."""
        begin, end = self.section
        called = False
        while True:
            found = yield from text_before(source, self.openers, Content, trim=called)
            if found is None:
                return
            taken = found.space + found.marker
            if found.marker == begin:
                opened = yield from skip(source, self.open)
                if opened is None:
                    yield Content(taken)
                    continue
                taken += opened
            made = yield from self._call(source, tools)
            called |= made
            if not made:
                yield Content(taken)
            while made and (yield from skip(source, self.open)) is not None:
                made = yield from self._call(source, tools)
                if not made:
                    yield Content(self.open)
            if end and made:
                yield from skip(source, end)

    def _call(self, source: Source, tools: Tools) -> Parse[bool]:
        """Take one call after its opening; False, with nothing taken, if there is none."""
        header = yield from match(source, self.header)
        if header is None:
            return False
        if header["name"] not in tools:
            source.text = header.group() + source.text
            return False
        yield CallStart(header["name"], header.groupdict().get("id"))
        yield from self._arguments(source)
        return True

    def _arguments(self, source: Source) -> Parse[None]:
        yield from skip_space(source)
        span = JsonSpan()
        while span.state is Span.OPEN:
            length = span.advance(source.text)
            if length:
                yield Arguments(source.take(length))
            if span.state is Span.OPEN:
                if source.closed:
                    return
                yield None
        if span.state is Span.BROKEN:
            end = self.close or self.open
            found = yield from text_before(source, (end,), Arguments)
            if found is not None:
                source.text = found.marker + source.text
        if self.close:
            yield from skip(source, self.close, self.fence.lstrip() + self.close)
