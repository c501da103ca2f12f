"""gpt-oss's harmony: an answer is a list of messages, each with a header that names its channel and recipient.

Owns the parser of `<|channel|>NAME to=RECIPIENT<|message|>BODY<|end|>`. The analysis channel is reasoning, a message to
`functions.X` is a call, everything else is content. Source: OpenAI's description of the harmony response format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.llama_cpp.chat.events import Arguments, CallStart, Content, Event, Reasoning
from backends.llama_cpp.chat.source import MAX_HEADER_CHARS, Parse, Source, text_before
from backends.llama_cpp.chat.tools import Call, Tools

_START, _CHANNEL, _MESSAGE, _END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
_ENDS = (_END, "<|return|>", "<|call|>", _START)
_BEGINNINGS = (_START, _CHANNEL, _MESSAGE, "to=", "assistant", "<|constrain|>")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*([a-z]+)")
_TO = r"(?:\s*to=[^\s<]+)?"
_HEADER = re.compile(
    rf"\s*(?:<\|start\|>)?(?:assistant)?{_TO}(?:<\|channel\|>\s*[a-z]+{_TO})*\s*(?:<\|constrain\|>)?\s*[\w-]*\s*"
)
"""Its last word says what the message is written in."""
_HEADER_WORDS = (_START, _CHANNEL, "<|constrain|>", "assistant", "analysis", "commentary", "final", "json", "to=")
_HEADER_WORD = re.compile("|".join(map(re.escape, _HEADER_WORDS[:-1])) + r"|\bto=[\w.-]+")


@dataclass(frozen=True, slots=True)
class Harmony:
    """The one family of its kind. `raw_reasoning` leaves the analysis channel in the content, markup included."""

    raw_reasoning: bool = False
    inside: Callable[[str], Event] | None = None
    """What the message is that the prompt has begun, if it has."""

    @property
    def visible(self) -> tuple[str, ...]:
        """The markers that are control tokens."""
        return (_START, _CHANNEL, _MESSAGE, _END, "<|constrain|>")

    @property
    def openers(self) -> tuple[str, ...]:
        """Reasoning is a message of its own here, so that no call can come inside it."""
        return ()

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as the family writes them."""
        return "<|start|>assistant".join(
            f"{_CHANNEL}commentary to=functions.{name} <|constrain|>json{_MESSAGE}"
            f"{json.dumps(arguments, ensure_ascii=False)}<|call|>"
            for name, arguments in calls
        )

    def parse(self, source: Source, tools: Tools) -> Parse[None]:
        """Messages until the text ends."""
        if self.inside is not None:
            yield from self._body(source, self.inside)
        while source.text or not source.closed:
            header = yield from self._header(source)
            if header is None:
                yield from text_before(source, _ENDS, Content, spaces=True)
                continue
            make = _make(header, tools, raw=self.raw_reasoning)
            if make is None:
                yield Content(header)
                make = Content
            elif make is Arguments:
                recipient = _RECIPIENT.search(header)
                assert recipient is not None
                yield CallStart(recipient.group(1))
            end = yield from self._body(source, make)
            if end and make is Content and self.raw_reasoning and "final" not in header:
                yield Content(end)

    def _body(self, source: Source, make: Callable[[str], Event]) -> Parse[str]:
        """Take a message's words and what ends them; the beginning of the next message stays."""
        found = yield from text_before(source, _ENDS, make)
        if found is None:
            return ""
        if found.marker == _START:
            source.text = _START + source.text
            return ""
        return found.marker

    def _header(self, source: Source) -> Parse[str | None]:
        """Take a header up to its message; None, with nothing taken, if the text is none."""
        while True:
            rest = source.text.lstrip()
            begins = any(rest.startswith(one) or one.startswith(rest) for one in _BEGINNINGS)
            end = source.text[:MAX_HEADER_CHARS].find(_MESSAGE)
            if begins and end >= 0 and _HEADER.fullmatch(source.text[:end]):
                return source.take(end + len(_MESSAGE))
            begins = begins and end < 0
            if begins and source.closed and _is_cut_header(rest):
                # A header that was cut off is markup and nobody's words.
                source.take(len(source.text))
                return None
            if not begins or source.closed or len(source.text) >= MAX_HEADER_CHARS:
                return None
            yield None


def _is_cut_header(text: str) -> bool:
    """Whether a text is nothing but a header that lacks its end."""
    cut = _HEADER_WORD.sub("", text).strip()
    return text.startswith(("<|start|>", "<|channel|>")) and any(word.startswith(cut) for word in _HEADER_WORDS)


def _make(header: str, tools: Tools, *, raw: bool) -> Callable[[str], Event] | None:
    """What a message's body is; None for what has no place in an answer and is shown with its header."""
    recipient = _RECIPIENT.search(header)
    # gpt-oss sometimes names a channel and then another; the last counts.
    name = next(reversed(_CHANNEL_NAME.findall(header)), "final")
    if recipient is not None and recipient.group(1) != "assistant":
        return Arguments if recipient.group(1) in tools else None
    if name == "analysis":
        return None if raw else Reasoning
    return Content
