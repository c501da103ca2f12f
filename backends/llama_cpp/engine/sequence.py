"""The engine's own records of a generating request and its choices. Data with a little arithmetic.

Must never call llama.cpp: `generate` does, and keeps these records true.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.llama_cpp.engine.detokenize import TextStream
from backends.llama_cpp.engine.drafts import Lookup
from backends.llama_cpp.engine.logprobs import Logprobs
from backends.llama_cpp.engine.media import TEXT_ONLY, Layout
from backends.llama_cpp.engine.prefix import Place, Saved
from backends.llama_cpp.engine.sampler import Sampler
from backends.llama_cpp.engine.types import Ended, Generate, MediaSpan


@dataclass(slots=True, eq=False)
class Job:
    """One Generate request while it is served."""

    request: Generate
    order: int
    """Arrival number: smaller is older."""
    live: dict[int, Sequence] = field(default_factory=dict)
    """Choices that have not finished, by index."""
    cached_tokens: int | None = None
    """Prompt tokens found in the cache at the first admission."""
    prefilled: bool = False
    """The whole prompt has been in the cache once, and the client has been told."""
    completion_tokens: int = 0
    layout: Layout = TEXT_ONLY
    """Where the prompt's media lie."""

    @property
    def may_round_differently(self) -> bool:
        """Whether its tokens may be computed in batches of any size, which round differently from each other. Not
        with a seed, which asks for the same answer every time."""
        return self.request.sampling.seed is None

    @property
    def takes_prefixes(self) -> bool:
        """Whether others' cache may be used: what follows a cached prefix is computed in batches of another size."""
        return self.request.cache_prompt and self.may_round_differently

    def ended(self, error: str | None) -> Ended:
        return Ended(
            request_id=self.request.request_id,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens or 0,
            completion_tokens=self.completion_tokens,
            error=error,
        )


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice. It waits while `place` is None and runs otherwise.

    `tokens` is the prompt and what was generated; the first `cached` of them are in the cache. What lies behind
    is yet to be decoded, and is never nothing.
    """

    job: Job
    index: int
    tokens: list[int]
    limit: int
    """Tokens, prompt included, at which the choice ends with LENGTH."""
    sampler: Sampler
    text: TextStream
    lookup: Lookup | None = None
    """What its next tokens are guessed from; None if they are not to be guessed."""
    logprobs: Logprobs | None = None
    """What is told of its tokens, if the request asks."""
    place: Place | None = None
    saved: Saved | None = None
    """Its cache in host memory while it is preempted."""
    turn: int = 0
    """Grows with each part of its prompt that is read: the roster's number for it."""
    unsent_tokens: int = 0
    """Generated since the last Piece."""

    @property
    def order(self) -> tuple[int, int]:
        return self.job.order, self.index

    @property
    def cached(self) -> int:
        return self.place.cached if self.place is not None else 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.cached

    @property
    def position(self) -> int:
        """Where the next token goes, if it is text."""
        return self.job.layout.position(self.cached)

    @property
    def run(self) -> int:
        """Pending tokens that one batch may hold: text up to the next medium, or the rest of a medium."""
        return self.job.layout.run(self.cached, len(self.tokens))

    @property
    def medium(self) -> MediaSpan | None:
        """The medium that the next token belongs to."""
        return self.job.layout.span_at(self.cached)

    def granted(self, count: int) -> int:
        """Of `count` tokens in the next batch, how many it takes: all of a medium that must not be cut."""
        medium = self.medium if count else None
        return count if medium is None or medium.causal else medium.n_tokens
