"""Which steps a request's sampling takes, in what order, and within which bounds.

Owns the rules of llama-server (common/sampling.cpp) and the last look at the numbers before they reach llama.cpp, which
aborts the process for some and draws nonsense for others. Pure: settings in, decisions out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from backends.llama_cpp.engine.types import Sampling, Stage

_SEEDS = 2**32 - 1
"""Seeds are below this: 0xFFFFFFFF asks llama.cpp for a random one."""
COLDEST = 1e-5
"""Temperatures closer to 0 pick the maximum anyway, and dividing by them overflows llama.cpp's floats."""
_MAX_BIAS = 1e6

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (-math.inf, 100),
    "dynatemp_range": (-math.inf, 100),
    "dynatemp_exponent": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (-math.inf, 100),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "min_keep": (0, math.inf),
    "repeat_penalty": (0.01, 100),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-10_000, 10_000),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
    "dry_allowed_length": (0, math.inf),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 10),
    "adaptive_target": (-math.inf, 1),
    "adaptive_decay": (0, 0.99),
}
"""What each setting may be, both ends included. The edge is narrower where OpenAI is."""

EDITS = (Stage.PENALTIES, Stage.DRY)
"""The stages that change the logits of single tokens and cut nothing."""


class SamplingError(Exception):
    """The request's sampler settings make no sampler for this model, or the model's logits no choice."""


class Last(Enum):
    """How one of the candidates that are left becomes the token."""

    GREEDY = "greedy"
    DIST = "dist"
    ADAPTIVE_P = "adaptive_p"
    MIROSTAT = "mirostat"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to the logits, in order, without what does nothing."""

    stages: tuple[Stage, ...]
    last: Last

    @property
    def first(self) -> tuple[Stage, ...]:
        """The edits that come before anything else: they need no candidates, only the logits."""
        count = next((at for at, stage in enumerate(self.stages) if stage not in EDITS), len(self.stages))
        return self.stages[:count]


def plan(sampling: Sampling) -> Plan:
    """The steps of a request. At temperature 0 only what moves the maximum is left."""
    asked = [stage for stage in sampling.samplers if _does_something(stage, sampling)]
    greedy = sampling.temperature < COLDEST and sampling.dynatemp_range <= 0
    edits = tuple(stage for stage in asked if stage in EDITS)
    if sampling.mirostat:
        if greedy:
            return Plan(edits, Last.GREEDY)
        heat = (Stage.TEMPERATURE,) if _does_something(Stage.TEMPERATURE, sampling) else ()
        return Plan((*edits, *heat), Last.MIROSTAT)
    if greedy and Stage.TEMPERATURE in asked:
        before = tuple(asked[: asked.index(Stage.TEMPERATURE)])
        moves = any(stage in (Stage.TYPICAL_P, Stage.XTC) for stage in before)
        return Plan(before if moves else tuple(stage for stage in before if stage in EDITS), Last.GREEDY)
    adaptive = Stage.ADAPTIVE_P in sampling.samplers and sampling.adaptive_target >= 0
    return Plan(tuple(asked), Last.ADAPTIVE_P if adaptive else Last.DIST)


def _does_something(stage: Stage, sampling: Sampling) -> bool:
    match stage:
        case Stage.PENALTIES:
            changes = sampling.repeat_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
            return changes and sampling.repeat_last_n != 0
        case Stage.DRY:
            return sampling.dry_multiplier > 0 and sampling.dry_penalty_last_n != 0
        case Stage.TOP_N_SIGMA:
            return sampling.top_n_sigma > 0
        case Stage.TOP_K:
            return sampling.top_k > 0
        case Stage.TYPICAL_P:
            return sampling.typical_p < 1
        case Stage.TOP_P:
            return sampling.top_p < 1
        case Stage.MIN_P:
            return sampling.min_p > 0
        case Stage.XTC:
            return sampling.xtc_probability > 0 and sampling.xtc_threshold <= 0.5
        case Stage.TEMPERATURE:
            return sampling.temperature != 1 or sampling.dynatemp_range > 0
        case Stage.ADAPTIVE_P:
            return False


def temperatures(sampling: Sampling) -> tuple[float, float]:
    """The middle and the reach of the temperature, for `llama_sampler_init_temp_ext`.

    Its coldest is not below `COLDEST`: where one token is almost certain llama.cpp would divide by next to nothing, and
    then draw from numbers that are none.
    """
    reach = max(0.0, sampling.dynatemp_range)
    coldest, hottest = max(COLDEST, sampling.temperature - reach), max(COLDEST, sampling.temperature + reach)
    return (coldest + hottest) / 2, (hottest - coldest) / 2


def merged_bias(sampling: Sampling, eog_tokens: Iterable[int], suppressed: Iterable[int]) -> dict[int, float]:
    """Bias per token: the request's, tokens the model says are never to be sampled, and every end token if ignored."""
    bias: dict[int, float] = {}
    for token, value in sampling.logit_bias:
        bias[token] = bias.get(token, 0.0) + value
    banned = (*suppressed, *eog_tokens) if sampling.ignore_eos else tuple(suppressed)
    bias.update(dict.fromkeys(banned, -math.inf))
    return bias


def check_bias(bias: Mapping[int, float], n_vocab: int) -> None:
    """Raises `SamplingError` for a token outside the vocabulary, what is no number, or a ban on everything."""
    for token, value in bias.items():
        if not 0 <= token < n_vocab:
            raise SamplingError(f"logit_bias names token {token}; the vocabulary has {n_vocab}")
        if value != -math.inf and not abs(value) <= _MAX_BIAS:
            raise SamplingError(f"logit_bias of token {token} is {value}; it must be within ±{_MAX_BIAS:g}, or a ban")
    if sum(value == -math.inf for value in bias.values()) >= n_vocab:
        raise SamplingError("logit_bias bans every token of the vocabulary")


def check_settings(sampling: Sampling) -> None:
    """Raises `SamplingError` naming the first setting that is out of its bounds or named twice."""
    for name, (low, high) in _BOUNDS.items():
        value = getattr(sampling, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise SamplingError(f"{name} is {value}; it must be {_between(low, high)}")
    if len(set(sampling.samplers)) != len(sampling.samplers):
        raise SamplingError("samplers names a stage twice")


def _between(low: float, high: float) -> str:
    if math.isinf(low):
        return f"at most {high}"
    return f"at least {low}" if math.isinf(high) else f"from {low} to {high}"


def window(last_n: int, n_ctx: int) -> int:
    """How many tokens a stage looks back: -1 is the whole context, and none has more than that."""
    return n_ctx if last_n < 0 else min(last_n, n_ctx)


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of several choices: they follow the request's, so each is reproducible by itself."""
    return (seed + index) % _SEEDS


def breakers_in_bytes(breakers: Sequence[str]) -> tuple[bytes, ...]:
    """DRY's breakers as they appear in the text of tokens; empty ones break nothing."""
    return tuple(breaker.encode("utf-8", errors="replace") for breaker in breakers if breaker)
