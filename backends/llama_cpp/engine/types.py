"""What the worker's HTTP side and its engine thread say to each other. Frozen data, no behaviour.

Must never import llama_cpp: the HTTP side and its tests use it without the bindings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from backends.gguf_settings import Task as Task


class Finish(Enum):
    """Why a choice ended, in OpenAI's words."""

    STOP = "stop"
    """End of generation token, or one of the request's stop strings."""
    LENGTH = "length"
    """`max_tokens` reached, or the context is full."""


class Stage(Enum):
    """A step of sampling whose place in the order a request may set, by llama.cpp's names."""

    PENALTIES = "penalties"
    DRY = "dry"
    TOP_N_SIGMA = "top_n_sigma"
    TOP_K = "top_k"
    TYPICAL_P = "typ_p"
    TOP_P = "top_p"
    MIN_P = "min_p"
    XTC = "xtc"
    TEMPERATURE = "temperature"
    ADAPTIVE_P = "adaptive_p"
    """Chooses the token itself, and does so last wherever it stands."""


DEFAULT_STAGES = tuple(stage for stage in Stage if stage is not Stage.ADAPTIVE_P)
"""llama.cpp's order (common_params_sampling)."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """One request's sampler settings, checked and ranged at the edge. Names and defaults are llama.cpp's."""

    temperature: float = 0.8
    """0 or less is greedy."""
    dynatemp_range: float = 0.0
    """The temperature is up to so much lower or higher, by the entropy of what is left; 0 is off."""
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    """0 or less is off."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    """1 is off."""
    top_n_sigma: float = -1.0
    """Standard deviations of the logits below the largest; 0 or less is off."""
    xtc_probability: float = 0.0
    """How often all likely tokens but the last of them are taken away; 0 is off."""
    xtc_threshold: float = 0.1
    """From what probability on a token is likely; above 0.5 is off."""
    min_keep: int = 0
    """Tokens that top_p, min_p, typical_p and xtc leave at least."""
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Tokens the penalties look back; 0 is off, -1 the whole context."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    """0 is off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    """Tokens it looks back; 0 is off, -1 the whole context."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts that no repetition reaches across."""
    mirostat: int = 0
    """1 or 2 replaces all that cuts the candidates by that version of Mirostat."""
    mirostat_tau: float = 5.0
    """The surprise it aims at, in bits per token."""
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    """The probability that ADAPTIVE_P aims at; below 0 it only draws."""
    adaptive_decay: float = 0.9
    samplers: tuple[Stage, ...] = DEFAULT_STAGES
    """The order of the stages. What is not named does nothing, the temperature included."""
    seed: int | None = None
    """None draws a fresh one. With a seed no cached prefix is taken: it would round differently from run to run."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, bias added to its logit); minus infinity bans the token."""
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The vocabulary's tokens that prompts are built with, None where it has none, and where it wants them."""

    bos: int | None = None
    eos: int | None = None
    sep: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    fim_prefix: int | None = None
    """Fill in the middle: what comes before the gap, after it, and the gap itself."""
    fim_suffix: int | None = None
    fim_middle: int | None = None
    fim_repository: int | None = None
    """Before the name of a repository, for models that were trained on whole ones."""
    fim_separator: int | None = None
    """Before the name of each further file."""


@dataclass(frozen=True, slots=True, eq=False)
class MediaSpan:
    """A run of a prompt that is an image, a part of one, or sound."""

    start: int
    """Index of its first token in the prompt."""
    embeddings: Any
    """A numpy array of 32-bit floats: one row per token, as wide as the model's input."""
    positions: Any
    """A numpy array of 32-bit integers, absolute, one column per token: one row, or llama.cpp's four for M-RoPE."""
    n_pos: int
    """Positions it takes: with M-RoPE fewer than it has tokens."""
    causal: bool = True
    """False where its tokens attend to each other in both directions: then it is decoded in one piece."""

    @property
    def n_tokens(self) -> int:
        return len(self.embeddings)

    @property
    def end(self) -> int:
        return self.start + self.n_tokens


@dataclass(frozen=True, slots=True)
class Thinking:
    """The reasoning that may come before what is constrained."""

    open: str
    close: str
    begun: bool = False
    """The prompt has opened it."""
    token: int | None = None
    """The single token that `open` is, if it is one: an answer may begin with it although its grammar does not."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must follow. Reasoning stays free."""

    grammar: str
    """In llguidance's dialect of Lark. It was compiled before, so that it is known to be one."""
    thinking: Thinking | None = None
    triggers: tuple[str, ...] = ()
    """The grammar begins behind the first of these texts, and there may be none; empty: it begins at once."""
    said: str = ""
    """The beginning of what the grammar is for, which the prompt has at its end."""


@dataclass(frozen=True, slots=True)
class Generate:
    """A request for `n` continuations of one prompt. `prompt` holds token ids, at least one, fewer than n_ctx.

    The tokens of media are negative, and `media` has them all, in order.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int | None = None
    """Per choice; None runs to the end of the context."""
    stop: tuple[str, ...] = ()
    n: int = 1
    cache_prompt: bool = True
    """May take a prefix from, and leave its tokens to, other sequences."""
    visible_tokens: frozenset[int] = frozenset()
    """Control tokens whose text belongs to the answer; of others only the effect is kept."""
    logprobs: int | None = None
    """With each token of the answer its logprob is told, and those of so many likely ones; None tells nothing."""
    media: tuple[MediaSpan, ...] = ()
    constraint: Constraint | None = None

    @property
    def text(self) -> tuple[int, ...]:
        """The prompt's tokens without those of media."""
        return tuple(token for token in self.prompt if token >= 0) if self.media else self.prompt


@dataclass(frozen=True, slots=True)
class Embed:
    """A request for one pooled vector per input, or one score per prompt of query and document.

    Each input holds at least one token id.
    """

    request_id: str
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was before any sampler had a say: the natural logarithm of its probability."""

    token: int
    text: bytes
    """The token's bytes; special tokens are written out."""
    value: float
    """Never below `MIN_LOGPROB`."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token that was chosen and the likely ones beside it, the likeliest first. It may be among them."""

    chosen: Logprob
    likely: tuple[Logprob, ...]
    offset: int
    """Characters of the choice's text before the first one that this token has a part in."""


MIN_LOGPROB = -9999.0
"""OpenAI's figure for a token that is next to impossible; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one choice. `text` is whole characters that no stop string can still take back."""

    request_id: str
    index: int
    text: str
    tokens: int
    """Tokens generated since the last piece of this choice, also those whose text is held back or dropped."""
    finish: Finish | None = None
    """Set on the last piece of the choice."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens whose first character is in `text`, if they were asked for.

    Put together, all of a choice's pieces have one entry for every token that has a part in the text, in order: none
    for the token that ends it, for control tokens without a text, and for what a stop string has cut off. A token of
    which the beginning is shown before a stop string has one.
    """
    stopped_by: str | None = None
    """The stop string that has ended the choice."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is in the cache; sent once per Generate, before its first Piece."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to an Embed: one vector per input, in order, L2-normalised.

    A reranking model's vectors are its raw scores, the relevance first.
    """

    request_id: str
    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The request is over and its sequences are free. Always the last word on a request.

    `error` is None after a normal end or a cancel; otherwise the request failed alone, for this reason.
    """

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: str | None = None


Output = Prefilled | Piece | Embedded | Ended

Emit = Callable[[list[Output]], None]
"""Called by the engine thread, at most once per decoded batch, with everything that batch brought."""
