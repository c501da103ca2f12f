"""One answer's parser, put together: first the reasoning, then content and calls in the family's form."""

from __future__ import annotations

from dataclasses import dataclass

from backends.llama_cpp.chat.events import Content
from backends.llama_cpp.chat.families import Format
from backends.llama_cpp.chat.reasoning import Calls, Tags, parse_reasoning
from backends.llama_cpp.chat.source import Parse, Reader, Source, text_before
from backends.llama_cpp.chat.tools import Tools


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are read."""

    format: Format | None = None
    """None takes everything after the reasoning for content."""
    tools: Tools | None = None
    tags: Tags | None = None
    opening: str = ""
    """The end of a prompt that ends inside the reasoning."""
    raw_reasoning: bool = False
    """The reasoning between the tags stays in the content."""
    calls_end_reasoning: bool = False
    """A call may come before the reasoning has ended."""

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that must be seen, whether they are control tokens or not."""
        tags = (self.tags.open, self.tags.close) if self.tags else ()
        return (*tags, *(self.format.visible if self.format else ()))

    def reader(self) -> Reader:
        """A parser for one choice."""
        return Reader(self._parse)

    def _parse(self, source: Source) -> Parse[None]:
        if self.tags is not None:
            yield from parse_reasoning(
                source, self.tags, opening=self.opening, raw=self.raw_reasoning, calls=self._calls()
            )
        if self.format is None:
            yield from text_before(source, (), Content)
        else:
            yield from self.format.parse(source, self.tools or {})

    def _calls(self) -> Calls | None:
        form = self.format
        if form is None or not self.calls_end_reasoning:
            return None
        return Calls(form.openers, lambda source: form.parse(source, self.tools or {}))
