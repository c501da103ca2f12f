"""A model's chat template: Jinja from a file nobody vouches for, rendered in a sandbox with bounded work.

Owns the dialect of Jinja that model files are written in (Hugging Face's: loop controls, `tojson`,
`raise_exception`, `strftime_now`, `generation` blocks). What the bounds leave possible hurts only this
process, which serves this one model. Must never see anything but the messages it is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.llama_cpp.chat.json_text import well_formed

MAX_OUTPUT_CHARS = 64 * 1024 * 1024
"""More than any body the daemon lets through, with room for what the template adds."""
MAX_STEPS = 5_000_000
"""Lines of compiled template one rendering may run: thousands of messages, seconds at most."""
MAX_INTEGER_BITS = 4096

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For a file without a template: the form most models have seen."""

_FILENAME = "<chat_template>"
_NO_KWARGS: Mapping[str, object] = {}


class ChatTemplateError(Exception):
    """The template cannot be compiled, or not be rendered for these messages; the message is the template's own."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 -- the base class declares it as a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, without the operators that make huge values out of small ones.

    Lists may grow and shrink by one element at a time, which some model files do; all they reach was made for one
    rendering.
    """

    intercepted_binops = frozenset({"*", "**"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return (attr in ("append", "pop") and isinstance(obj, list)) or super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    _check_size(len(one) * other)
        return super().call_binop(context, operator, left, right)


def _check_size(length: int) -> None:
    if length > MAX_OUTPUT_CHARS:
        raise SecurityError(f"a value or text longer than {MAX_OUTPUT_CHARS} characters")


def _check_bits(bits: int) -> None:
    if bits > MAX_INTEGER_BITS:
        raise SecurityError(f"an integer of more than {MAX_INTEGER_BITS} bits")


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Hugging Face's filter: unlike Jinja's own it does not escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: object) -> list[object]:
    """What `map` and `selectattr` make has no length yet."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be JSON")


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], keep_trailing_newline=False
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


class ChatTemplate:
    """One compiled template. Rendering keeps no state, so any thread may do it."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        """Raises `ChatTemplateError` when `source` is not a template."""
        self.source = source
        self.bos_token = bos_token
        self._eos_token = eos_token
        self._knows_developer = "developer" in source
        environment = _environment()
        try:
            code = environment.compile(source, filename=_FILENAME)
            self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise ChatTemplateError(f"the chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        now: datetime,
        tools: Sequence[Mapping[str, object]] = (),
        kwargs: Mapping[str, object] = _NO_KWARGS,
        add_generation_prompt: bool = True,
        max_steps: int = MAX_STEPS,
    ) -> str:
        """The conversation as the model reads it, beginning-of-sequence token included if the template writes it.

        `add_generation_prompt` ends it with the beginning of the assistant's message. Raises `ChatTemplateError` with
        the template's words when it refuses the messages or exceeds a bound.
        """
        variables: dict[str, object] = {
            **kwargs,
            "messages": [self._known_role(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        if tools:
            # Otherwise undefined: templates made for tools loop over it, which works for undefined but not for None.
            variables["tools"] = list(tools)
        try:
            with _bounded_steps(max_steps):
                return self._joined(variables, now)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # a template can raise whatever Python can
            what = str(error) or type(error).__name__
            raise ChatTemplateError(f"the model's chat template refuses these messages: {what}") from error

    def _known_role(self, message: Mapping[str, object]) -> Mapping[str, object]:
        """OpenAI's newer name for the system role means nothing to most templates."""
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message

    def _joined(self, variables: Mapping[str, object], now: datetime) -> str:
        pieces, length = [], 0
        for piece in self._template.generate(
            **variables, bos_token=self.bos_token, eos_token=self._eos_token, strftime_now=now.strftime
        ):
            length += len(piece)
            _check_size(length)
            pieces.append(piece)
        return well_formed("".join(pieces))


@contextmanager
def _bounded_steps(max_steps: int) -> Iterator[None]:
    """Let this thread run at most `max_steps` lines of template code.

    A loop over loops needs no call that a sandbox could refuse, so the interpreter's own line trace is what
    counts. It traces template code only; everything else runs at full speed.
    """
    steps = 0

    def line(_frame: FrameType, _event: str, _arg: object) -> Callable[..., Any]:
        nonlocal steps
        steps += 1
        if steps > max_steps:
            raise SecurityError(f"it runs for more than {max_steps} steps")
        return line

    def call(frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        return line if frame.f_code.co_filename == _FILENAME else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
