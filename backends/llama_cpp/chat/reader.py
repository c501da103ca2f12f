"""One answer's parser, put together: first the reasoning, then content and calls in the family's form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from backends.llama_cpp.chat.events import Content
from backends.llama_cpp.chat.families import Format
from backends.llama_cpp.chat.harmony import Harmony
from backends.llama_cpp.chat.reasoning import Tags, parse_reasoning
from backends.llama_cpp.chat.source import Parse, Reader, Source, text_before
from backends.llama_cpp.chat.tools import Tools


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are read."""

    format: Format | None = None
    """None takes everything after the reasoning for content."""
    tools: Tools | None = None
    tags: Tags | None = None
    opened: bool = False
    """The prompt ends inside the reasoning."""
    raw_reasoning: bool = False
    """Reasoning stays in the content."""

    def reader(self) -> Reader:
        """A parser for one choice."""
        return Reader(self._parse)

    def _parse(self, source: Source) -> Parse[None]:
        if self.tags is not None:
            yield from parse_reasoning(source, self.tags, opened=self.opened, raw=self.raw_reasoning)
        form = self.format
        if isinstance(form, Harmony):
            form = replace(form, raw_reasoning=self.raw_reasoning)
        if form is None:
            yield from text_before(source, (), Content)
        else:
            yield from form.parse(source, self.tools or {})
