"""Grammars compiled by llguidance, for one vocabulary.

Owns the limits of compiling and of matching, and a small cache of compiled grammars. Must never import llguidance
before a grammar is asked for: most workers never see one. Safe to use from several threads.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from backends.llama_cpp.engine.stages import SamplingError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_GRAMMARS = 16
"""Compiled and kept. What one takes is bounded by `LIMITS`; ordinary ones take a few MiB."""
LIMITS: Mapping[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 8_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 250_000,
}
"""llguidance's LLParserLimits, below its defaults: every stream of the worker waits for a step."""
_ENDED = ("NoExtension", "NoExtensionBias", "EndOfSentence")
_MAX_MESSAGE_CHARS = 300
_BEFORE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: |Parser Error: ")
_BEHIND = re.compile(r"<state>|<non-verbose/>|<backtrace>|\n\s*\d+ \| ")

Mask = npt.NDArray[np.bool_]


class GrammarError(SamplingError):
    """The grammar does not compile, or nothing follows it; or it became too complex for a matcher."""


class Matcher:
    """Follows one answer through its grammar. For one thread."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._n_vocab = tokenizer.vocab_size
        self._bits = np.zeros((self._n_vocab + 31) // 32, np.int32)

    @property
    def complete(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped()) and self._matcher.stop_reason() in _ENDED

    def allows(self, token: int) -> bool:
        """Whether the token may come next. An end token may where the answer may end."""
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> Mask:
        """The same for the whole vocabulary, true where a token may come. Raises `GrammarError`."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return np.unpackbits(self._bits.view(np.uint8), count=self._n_vocab, bitorder="little").view(np.bool_)

    def allows_text(self, text: bytes) -> bool:
        """Whether these bytes may come next, however they are cut into tokens. Not if they are no UTF-8."""
        tokens = self._tokens(text)
        return tokens is not None and bool(self._matcher.validate_tokens(tokens) == len(tokens))

    def accept(self, token: int) -> None:
        """Go on with a token that is allowed. Raises `GrammarError` when the grammar has become too complex."""
        if not self._matcher.consume_token(token):
            self._check()

    def accept_text(self, text: bytes) -> None:
        """The same for bytes that are allowed."""
        tokens = self._tokens(text)
        assert tokens is not None
        if not self._matcher.consume_tokens(tokens):
            self._check()

    def copy(self) -> Matcher:
        """Another one in the same place."""
        return Matcher(self._matcher.deep_copy(), self._tokenizer)

    def _tokens(self, text: bytes) -> list[int] | None:
        try:
            return list(self._tokenizer.greedy_tokenize(text.decode()))
        except UnicodeDecodeError:
            return None

    def _check(self) -> None:
        matcher = self._matcher
        if matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed: {message_of(matcher.get_error())}")
        if matcher.is_stopped() and matcher.stop_reason() not in _ENDED:
            raise GrammarError(f"the grammar cannot be followed: {matcher.stop_reason()}")


class Grammars:
    """Compiles grammars for one vocabulary. `make_tokenizer` is called once, in the thread that needs it first."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._compiling = threading.Lock()
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Matcher] = OrderedDict()

    def check(self, grammar: str, said: str = "") -> None:
        """Compile a grammar, unless it is known. Raises `GrammarError`, also if it does not allow `said` to begin with.

        Blocks for milliseconds, and for some tenths of a second the first time, most of it with Python's lock held.
        """
        matcher = self.matcher(grammar)
        if said and not matcher.allows_text(said.encode()):
            raise GrammarError("the message that is to be continued does not follow it")

    def matcher(self, grammar: str) -> Matcher:
        """A matcher at the beginning. Compiles the grammar only if `check` was long ago. Raises `GrammarError`."""
        with self._lock:
            known = self._compiled.get(grammar)
            if known is not None:
                self._compiled.move_to_end(grammar)
                return known.copy()
        made = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = made
            while len(self._compiled) > MAX_GRAMMARS:
                self._compiled.popitem(last=False)
            return made.copy()

    def _compile(self, grammar: str) -> Matcher:
        from llguidance import LLMatcher, LLParserLimits

        with self._compiling:
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer()
        limits = LLParserLimits(**LIMITS, verbose_errors=False)
        compiled: Any = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=limits)
        if compiled.is_error():
            raise GrammarError(message_of(compiled.get_error()))
        made = Matcher(compiled, self._tokenizer)
        # The first mask does a part of the work that is put off, and shows a grammar that is too much.
        if not made.copy().allowed().any():
            raise GrammarError("no answer follows it")
        made.allowed()
        return made


def message_of(error: str) -> str:
    """llguidance's own words, without the state and the lines of the grammar that it adds."""
    words = " ".join(_BEFORE.sub("", _BEHIND.split(error)[0]).split())
    return words[:_MAX_MESSAGE_CHARS] or "llguidance refuses it"
