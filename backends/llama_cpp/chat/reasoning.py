"""Where a model's words to itself begin and end.

Owns the pairs of tags and the parser of what precedes an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backends.llama_cpp.chat.events import Content, Reasoning
from backends.llama_cpp.chat.source import Parse, Source, skip_space, text_before

ReasoningFormat = Literal["auto", "deepseek", "none"]


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
    Tags("<thinking>", "</thinking>"),
)


def tags_of(template: str) -> Tags | None:
    """The tags that a template's text knows, if any."""
    return next((tags for tags in TAGS if tags.close in template or tags.open in template), None)


def opened_by(prompt: str, tags: Tags) -> bool:
    """Whether the prompt ends inside the model's reasoning."""
    return prompt.rfind(tags.open) > prompt.rfind(tags.close) and prompt.rstrip().endswith(tags.open)


def parse_reasoning(source: Source, tags: Tags, *, opened: bool, raw: bool) -> Parse[None]:
    """Take the reasoning that an answer may begin with. `raw` passes it on as content, tags included."""
    if not opened:
        while True:
            rest = source.text.lstrip()
            if rest.startswith(tags.open):
                break
            if source.closed or (rest and not tags.open.startswith(rest)):
                return
            yield None
        before = source.take(len(source.text) - len(rest) + len(tags.open))
        if raw:
            yield Content(before)
    if raw:
        found = yield from text_before(source, (tags.close,), Content, spaces=True)
        if found is not None:
            yield Content(found.marker)
        return
    yield from skip_space(source)
    found = yield from text_before(source, (tags.close,), Reasoning)
    if found is not None:
        yield from skip_space(source)
