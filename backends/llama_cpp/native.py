"""llama-server's own way to generate text: the fields that both its endpoints know, /completion, and the answer.

Owns the native shape of answers. Pure; blocking where texts are tokenized, so the server calls it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backends.llama_cpp.engine.types import (
    Ended,
    Finish,
    Generate,
    Output,
    Piece,
    Prefilled,
    TokenLogprobs,
)
from backends.llama_cpp.errors import RequestError, engine_failed
from backends.llama_cpp.logprobs import native_logprobs
from backends.llama_cpp.prompts import Grammars, check_prompt, compiled, generates
from backends.llama_cpp.requests import Limits, TextBody, TokenId, Tokens, choices, decode
from backends.llama_cpp.responses import DONE
from backends.llama_cpp.sampling import INT32_MAX, Tokenizer
from backends.llama_cpp.structured.constraints import completion_constraint
from backends.llama_cpp.tokens import mixed_tokens
from backends.llama_cpp.unsupported import NATIVE

Text = str | tuple[str | TokenId, ...]
"""A text, or texts and tokens that make one together."""


class NativeBody(TextBody, frozen=True, kw_only=True):
    """What /completion and /infill have in common."""

    n_indent: Annotated[int, Meta(ge=0, le=1024)] | None = None
    """Ends the text at the first line that is indented by fewer blanks."""
    t_max_predict_ms: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    """Ends the text at the first line break after so many milliseconds; 0 and below is no limit."""

    @property
    def warms_up(self) -> bool:
        """Nothing is to be generated: the prompt is computed for the next request to begin with."""
        return self.n_predict == 0 and not self.max_tokens and not self.max_completion_tokens


class TextPrompt(NativeBody, frozen=True, kw_only=True):
    """POST /completion."""

    prompt: Text


_decoder = msgspec.json.Decoder(TextPrompt)


def decode_text(data: bytes, limits: Limits) -> TextPrompt:
    """Check a body of /completion. Raises `RequestError` naming the field."""
    body = decode(_decoder, data, NATIVE)
    refuse_choices(body, limits)
    if isinstance(body.prompt, tuple) and len(body.prompt) > 1 and all(isinstance(part, str) for part in body.prompt):
        raise RequestError("prompt: several texts are several requests here; send them one by one", param="prompt")
    return body


def refuse_choices(body: NativeBody, limits: Limits) -> None:
    """Raise a `RequestError` if more than one answer is asked for: the native shape has no place for them."""
    if choices(body, limits) > 1:
        raise RequestError("n must be 1 here", param="n" if body.n is not None else "n_cmpl")


def text_request(
    body: TextPrompt, tokenizer: Tokenizer, grammars: Grammars, limits: Limits, new_id: Callable[[], str]
) -> Generate:
    """The Generate that goes on with the prompt."""
    parts = (body.prompt,) if isinstance(body.prompt, str) else body.prompt
    prompt = tuple(mixed_tokens(parts, tokenizer, limits, "prompt", add_special=True, parse_special=True))
    return native_request(body, prompt, tokenizer, grammars, limits, new_id)


def native_request(
    body: NativeBody,
    prompt: Tokens,
    tokenizer: Tokenizer,
    grammars: Grammars,
    limits: Limits,
    new_id: Callable[[], str],
) -> Generate:
    """The Generate for a prompt in tokens, with what the body asks for. Raises `RequestError`."""
    check_prompt(prompt, limits, "prompt")
    asked = msgspec.structs.replace(body, n_predict=1) if body.warms_up else body
    constraint = compiled(completion_constraint(body, tokenizer), grammars)
    (generate,) = generates(asked, [prompt], tokenizer, limits, new_id, constraint)
    return generate


@dataclass(slots=True)
class NativeAnswer:
    """Turns outputs into llama-server's native answer, whole or as events.

    A stream ends with `[DONE]` as every stream here does, so that a broken one can be told from a whole one. `now_s`
    is a clock. The body's own limits end the answer before the engine does; whoever leaves the call then cancels.
    """

    model_id: str
    body: NativeBody
    now_s: Callable[[], float]
    failed: bool = False
    ended: bool = False
    _texts: list[str] = field(default_factory=list)
    _characters: int = 0
    _logprobs: list[TokenLogprobs] = field(default_factory=list)
    _indent: int | None = None
    """Blanks at the beginning of the current line so far; None behind them, and on the first line."""
    _began_s: float | None = None
    _finish: Finish | None = None
    _prompt_tokens: int = 0
    _cached_tokens: int = 0
    _tokens: int = 0

    @property
    def finished(self) -> bool:
        return self.failed or self.ended

    def feed(self, outputs: Sequence[Output]) -> bytes:
        """The events these outputs make, as one block of bytes."""
        events: list[bytes] = []
        for output in outputs:
            match output:
                case Prefilled():
                    self._prompt_tokens, self._cached_tokens = output.prompt_tokens, output.cached_tokens
                case Piece():
                    text, entries = self._take(output)
                    if text:
                        events.append(_event(self._document(text, entries, stop=False)))
                    if self.ended:
                        return b"".join([*events, *self._last()])
                case Ended(error=str() as error):
                    self.failed = True
                    return b"".join([*events, b"data: ", engine_failed(error).envelope(), b"\n\n"])
                case Ended():
                    self.ended = True
                    events += self._last()
                case _:
                    pass
        return b"".join(events)

    def collect(self, outputs: Sequence[Output]) -> None:
        """Take outputs in for a whole answer. Raises `RequestError` when the engine gave the request up."""
        error = next((output.error for output in outputs if isinstance(output, Ended) and output.error), None)
        if error is not None:
            raise engine_failed(error)
        self.feed(outputs)

    def answer(self) -> bytes:
        """The whole answer as a JSON document."""
        assert self.ended
        return msgspec.json.encode(self._document("".join(self._texts), self._logprobs, stop=True))

    def _take(self, piece: Piece) -> tuple[str, Sequence[TokenLogprobs]]:
        """Book a piece; returns what of its text is part of the answer, and of that what there is to tell."""
        self._tokens += piece.tokens
        self._finish = piece.finish or self._finish
        text = "" if self.body.warms_up else self._within_indent(piece.text)
        self._texts.append(text)
        self._characters += len(text)
        entries = [entry for entry in piece.logprobs if entry.offset < self._characters]
        self._logprobs += entries
        if not self.ended and "\n" in text and self._is_late():
            self._cut()
        if self._began_s is None:
            self._began_s = self.now_s()
        return text, entries

    def _within_indent(self, text: str) -> str:
        """The text up to the first line that is not indented enough (server-context.cpp process_token)."""
        if not self.body.n_indent:
            return text
        for position, character in enumerate(text):
            if self._indent is not None and character in " \t":
                self._indent += 1
            elif self._indent is not None and self._indent < self.body.n_indent:
                self._cut()
                return text[:position]
            else:
                self._indent = 0 if character == "\n" else None
        return text

    def _is_late(self) -> bool:
        limit_ms = self.body.t_max_predict_ms or 0
        return limit_ms > 0 and self._began_s is not None and 1000 * (self.now_s() - self._began_s) > limit_ms

    def _cut(self) -> None:
        self.ended, self._finish = True, Finish.LENGTH

    def _last(self) -> list[bytes]:
        return [_event(self._document("", (), stop=True)), DONE]

    def _document(self, content: str, entries: Sequence[TokenLogprobs], *, stop: bool) -> dict[str, Any]:
        document: dict[str, Any] = {
            "index": 0,
            "content": content,
            "stop": stop,
            "model": self.model_id,
            "tokens_predicted": self._tokens,
            "tokens_evaluated": self._prompt_tokens,
        }
        if entries:
            document["completion_probabilities"] = native_logprobs(entries)
        if stop:
            document |= {
                "tokens_cached": self._cached_tokens,
                "truncated": False,
                "stop_type": "limit" if self._finish is Finish.LENGTH else "eos",
            }
        return document


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
