"""Where a model's words to itself begin and end.

Owns the pairs of tags and the parser of what precedes an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.llama_cpp.chat.events import CallStart, Content, Event, Reasoning
from backends.llama_cpp.chat.source import Parse, Source, skip_space, text_before


@dataclass(frozen=True, slots=True)
class Tags:
    """One family's tags."""

    open: str
    close: str


TAGS = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<mm:think>", "</mm:think>"),
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),
    Tags("◁think▷", "◁/think▷"),
    Tags("<|channel>thought", "<channel|>"),
    Tags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    Tags("<thinking>", "</thinking>"),
)


def tags_of(template: str) -> Tags | None:
    """The tags that a template's text knows, if any."""
    return next((tags for tags in TAGS if tags.close in template or tags.open in template), None)


def opening_of(prompt: str, tags: Tags) -> str:
    """What a prompt that ends inside the model's reasoning ends with; empty if it does not."""
    start = prompt.rfind(tags.open)
    inside = start > prompt.rfind(tags.close) and not prompt[start + len(tags.open) :].strip()
    return prompt[start:] if inside else ""


def parse_reasoning(source: Source, tags: Tags, *, opening: str, raw: bool, calls: Calls | None) -> Parse[None]:
    """Take the reasoning that an answer may begin with, or that the prompt has begun with `opening`.

    `raw` passes it on as content, tags included. A call that `calls` knows ends it, too.
    """
    make: Callable[[str], Event] = Content if raw else Reasoning
    if not opening:
        while True:
            rest = source.text.lstrip()
            if rest.startswith(tags.open):
                break
            if source.closed or (rest and not tags.open.startswith(rest)):
                return
            yield None
        opening = source.take(len(source.text) - len(rest) + len(tags.open))
    if raw:
        yield Content(opening)
    else:
        yield from skip_space(source)
    while True:
        found = yield from text_before(source, (tags.close, *(calls.markers if calls else ())), make, spaces=raw)
        if found is None:
            return
        if found.marker == tags.close:
            break
        assert calls is not None
        begins = yield from calls.begin(source, found.marker)
        if begins:
            source.text = found.marker + source.text
            return
        yield make(found.space + found.marker)
    if raw:
        yield Content(tags.close)
    else:
        yield from skip_space(source)


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of a family whose models forget to end their reasoning before they call."""

    markers: tuple[str, ...]
    parse: Callable[[Source], Parse[None]]

    def begin(self, source: Source, marker: str) -> Parse[bool]:
        """Whether a call follows a marker that was taken. Takes nothing."""
        while True:
            trial = Source()
            trial.text, trial.closed = marker + source.text, source.closed
            first = next(self.parse(trial), None)
            if first is not None or source.closed:
                return isinstance(first, CallStart)
            yield None
