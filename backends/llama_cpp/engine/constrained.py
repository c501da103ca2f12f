"""A sampler whose choices follow a grammar.

Owns the rejection trick: the token that the inner sampler picks is checked alone, and the whole vocabulary is masked
only when it is turned down. What comes out has the same distribution as if the mask had come first. An answer may end
exactly where its grammar may, and ends by itself where nothing else can follow, whatever `ignore_eos` says.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backends.llama_cpp.engine.edits import Logits
from backends.llama_cpp.engine.grammars import GrammarError, Matcher
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.sampler import Sampler
from backends.llama_cpp.engine.types import Constraint, Generate
from backends.llama_cpp.engine.watch import Watch, watch_for

MAX_TURNED_DOWN = 64
"""Tokens that reach into the constrained part and do not follow it, until the choice is given up."""

Piece = Callable[[int], bytes]
"""A token's bytes as they appear in the answer."""


class ConstrainedSampler:
    """Wraps the sampler of one choice and its matcher, which is at the beginning of the grammar."""

    def __init__(
        self, inner: Sampler, matcher: Matcher, constraint: Constraint, piece: Piece, eog_tokens: frozenset[int]
    ) -> None:
        self._inner = inner
        self._matcher: Matcher | None = matcher
        self._lazy = bool(constraint.triggers)
        self._piece = piece
        self._eog_tokens = eog_tokens
        self._eog_places = np.fromiter(eog_tokens, np.intp, len(eog_tokens))
        self._watch = watch_for(constraint)
        thinking = constraint.thinking
        self._thought_token = thinking.token if thinking is not None and self._watch is None else None
        self._closing = thinking.close.encode() if thinking is not None else b""
        self.masks = 0
        """How often the whole vocabulary was masked."""
        if constraint.said:
            matcher.accept_text(constraint.said.encode())

    @property
    def is_slow(self) -> bool:
        """As the inner sampler: a mask takes longer, but is rare."""
        return self._inner.is_slow

    @property
    def complete(self) -> bool:
        """Whether the grammar allows nothing more: the choice is over."""
        return self._watch is None and self._matcher is not None and self._matcher.complete

    def pick(self, logits: Logits) -> int:
        """Choose the next token. Raises `SamplingError` if none may come, `GrammarError` if that cannot be told."""
        if self._matcher is None:
            return self._inner.pick(logits)
        if self._watch is not None:
            return self._pick_free(self._watch, self._matcher, logits)
        token = self._inner.pick(logits)
        if token == self._thought_token or self._matcher.allows(token):
            return token
        try:
            allowed = self._matcher.allowed()
        except GrammarError:
            if not self._lazy:
                raise
            # Nobody asked for a call; one that is too complex to follow is left to the model.
            self._matcher = None
            return token
        self.masks += 1
        if self._thought_token is not None:
            allowed[self._thought_token] = True
        token = self._inner.pick(np.where(allowed, logits, np.float32(-np.inf)))
        assert allowed[token], "the inner sampler chose a token that was masked"
        return token

    def accept(self, token: int) -> None:
        """Go on with a token. Raises `GrammarError` if the grammar has become too complex."""
        self._inner.accept(token)
        if self._matcher is None or token in self._eog_tokens:
            return
        if self._watch is not None:
            watch, rest = self._watch.after(self._piece(token))
            self._watch = watch if rest is None else None
            if rest:
                self._matcher.accept_text(rest)
        elif token == self._thought_token:
            self._watch = Watch(((self._closing,),))
        else:
            self._matcher.accept(token)
        self._thought_token = None

    def close(self) -> None:
        self._inner.close()
        self._matcher = None

    def _pick_free(self, watch: Watch, matcher: Matcher, logits: Logits) -> int:
        """Any token, but what of it lies in the constrained part must follow the grammar."""
        if not self._lazy:
            # The answer must not end before what was asked for.
            logits = logits.copy()
            logits[self._eog_places] = -np.inf
        for turned_down in range(MAX_TURNED_DOWN):
            token = self._inner.pick(logits)
            if token in self._eog_tokens:
                return token
            rest = watch.after(self._piece(token))[1]
            if not rest or matcher.allows_text(rest):
                return token
            if not turned_down:
                logits = logits.copy()
            logits[token] = -np.inf
        raise GrammarError("no token was found that ends the free part and follows the grammar")


def constrained(inner: Sampler, request: Generate, constraint: Constraint, model: Model) -> Sampler:
    """The sampler of one choice, held to the request's constraint. Raises `GrammarError`, and closes it then."""
    try:
        matcher = model.grammars.matcher(constraint.grammar)
    except GrammarError:
        inner.close()
        raise

    def piece(token: int) -> bytes:
        return model.piece(token, visible=token in request.visible_tokens)

    return ConstrainedSampler(inner, matcher, constraint, piece, model.eog_tokens)


def is_complete(sampler: Sampler) -> bool:
    """Whether the answer has nothing left that could follow."""
    return isinstance(sampler, ConstrainedSampler) and sampler.complete
