"""Tokens as an answer itself counts them: asked for, read off, and taken out again where the client did not ask.

Pure helpers for workers that do not count for themselves. Must never keep an answer, nor look into what cannot hold a
count.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from swapd.pool.lease import TokenCounts

MAX_TOKENS = 1_000_000_000
"""Of one request; what says more counts nothing."""

_OPTIONS = b'"stream_options"'
_ASKED = b',"stream_options":{"include_usage":true}}'
_NAMES = (b'"usage"', b'"tokens_evaluated"')
# Within a text the quotes would be escaped; many servers send `"usage":null` with every chunk.
_USAGE = re.compile(rb'"usage"\s*:\s*\{|"stop"\s*:\s*true')
_EVENT = re.compile(rb".*?\n\r?\n", re.DOTALL)

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    cache_n: _Tokens | None = None


class _Answer(msgspec.Struct):
    """OpenAI's, or with the last three llama-server's own, of the end of an answer."""

    usage: _Usage | None = None
    choices: list[msgspec.Raw] | None = None
    tokens_evaluated: _Tokens | None = None
    tokens_predicted: _Tokens | None = None
    timings: _Timings | None = None


_answers = msgspec.json.Decoder(_Answer)


def asking_for_usage(body: bytes) -> bytes | None:
    """A streamed request, one compact JSON object, that asks for its usage, too; None if it does so already."""
    if _OPTIONS not in body:
        return body[:-1] + _ASKED
    fields: dict[str, Any] = msgspec.json.decode(body)
    options = fields.get("stream_options") or {}
    if options.get("include_usage"):
        return None
    return msgspec.json.encode({**fields, "stream_options": {**options, "include_usage": True}})


class UsageTap:
    """One answer on its way. `hide` takes out the chunk that is there for the usage alone."""

    def __init__(self, *, hide: bool) -> None:
        self.counts: TokenCounts | None = None
        """The newest count; None as long as there is none."""
        self._hide = hide

    def events(self, whole: bytes) -> tuple[bytes, int]:
        """Whole events of a stream, without those that are hidden, and how many these are."""
        if not any(name in whole for name in _NAMES) or not _USAGE.search(whole):
            return whole, 0
        kept, end, hidden = [], 0, 0
        for match in _EVENT.finditer(whole):
            event, end = match[0], match.end()
            if self._is_for_usage_alone(event) and self._hide:
                hidden += 1
            else:
                kept.append(event)
        return b"".join((*kept, whole[end:])), hidden

    def _is_for_usage_alone(self, event: bytes) -> bool:
        if not _USAGE.search(event):
            return False
        lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
        answer = self._note(b"\n".join(lines))
        return answer is not None and answer.usage is not None and not answer.choices

    def body(self, whole: bytes) -> None:
        """An answer that is not streamed."""
        if _USAGE.search(whole):
            self._note(whole)

    def _note(self, document: bytes) -> _Answer | None:
        """An answer that has a count, which is kept."""
        try:
            answer = _answers.decode(document)
        except (msgspec.MsgspecError, RecursionError):
            return None
        counts = _native_counts(answer) if answer.usage is None else _counts(answer.usage)
        if counts is None:
            return None
        self.counts = counts
        return answer


def _native_counts(answer: _Answer) -> TokenCounts | None:
    if answer.tokens_evaluated is None:
        return None
    cached = 0 if answer.timings is None else answer.timings.cache_n or 0
    prompt = answer.tokens_evaluated
    return TokenCounts(prompt, min(prompt, cached), answer.tokens_predicted or 0)


def _counts(usage: _Usage) -> TokenCounts | None:
    """Servers for embeddings and reranking may tell only the sum, which is the prompt then."""
    completion = usage.completion_tokens or 0
    prompt = usage.prompt_tokens
    if prompt is None and usage.total_tokens is not None:
        prompt = max(0, usage.total_tokens - completion)
    if prompt is None:
        return None
    details = usage.prompt_tokens_details
    cached = 0 if details is None else details.cached_tokens or 0
    return TokenCounts(prompt, min(prompt, cached), completion)
