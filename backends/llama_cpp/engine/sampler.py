"""How the next token is chosen: the order of the stages, and the two samplers that carry them out.

Greedy requests without penalties need one argmax over the logits; all others get a llama.cpp sampler chain of
their own. Choosing and accepting are two steps, so that a choice can be turned down. Must never accept a token twice,
nor use `llama_sampler_sample`, which accepts by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Protocol

import llama_cpp.llama_cpp as llama
import numpy as np

from backends.llama_cpp.engine.candidates import Candidates, Logits
from backends.llama_cpp.engine.types import Sampling

_SEEDS = 2**32 - 1
"""Seeds are below this: 0xFFFFFFFF asks llama.cpp for a random one."""

_GREEDY_BELOW = 1e-5
"""Temperatures closer to 0 pick the maximum anyway, and dividing by them overflows llama.cpp's floats."""


class Stage(Enum):
    """One sampler of a chain."""

    LOGIT_BIAS = "logit_bias"
    PENALTIES = "penalties"
    TOP_K = "top_k"
    TOP_P = "top_p"
    MIN_P = "min_p"
    TEMPERATURE = "temperature"
    GREEDY = "greedy"
    DIST = "dist"


class SamplingError(Exception):
    """The request's sampler settings make no sampler for this model."""


class Sampler(Protocol):
    """What chooses the tokens of one sequence."""

    def pick(self, logits: Logits, ctx: int, output: int) -> int:
        """Choose the next token without accepting it.

        `logits` is the row of the batch token number `output`, of which some may have been set to minus infinity. It
        is left as it was, so that another may be picked from it after more of it was masked.
        """
        ...

    def accept(self, token: int) -> None:
        """The token that was emitted, picked here or not: what is to come depends on it. Once for every token."""
        ...

    def close(self) -> None:
        """Free what is held outside of Python. Closing twice is harmless."""
        ...


def stages(sampling: Sampling, *, biased: bool) -> tuple[Stage, ...]:
    """The stages of a request in llama.cpp's default order (common_params_sampling), without those that do nothing.

    `biased` says that some logits are to be changed first. At temperature 0 only what moves the maximum is left.
    """
    order = [Stage.LOGIT_BIAS] if biased else []
    if sampling.repeat_last_n != 0 and (
        sampling.repeat_penalty != 1.0 or sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0
    ):
        order.append(Stage.PENALTIES)
    if sampling.temperature < _GREEDY_BELOW:
        return (*order, Stage.GREEDY)
    if sampling.top_k > 0:
        order.append(Stage.TOP_K)
    if sampling.top_p < 1.0:
        order.append(Stage.TOP_P)
    if sampling.min_p > 0.0:
        order.append(Stage.MIN_P)
    if sampling.temperature != 1.0:
        order.append(Stage.TEMPERATURE)
    return (*order, Stage.DIST)


def merged_bias(sampling: Sampling, eog_tokens: Iterable[int], suppressed: Iterable[int]) -> dict[int, float]:
    """Bias per token: the request's, tokens the model says are never to be sampled, and every end token if ignored."""
    bias: dict[int, float] = {}
    for token, value in sampling.logit_bias:
        bias[token] = bias.get(token, 0.0) + value
    banned = (*suppressed, *eog_tokens) if sampling.ignore_eos else tuple(suppressed)
    bias.update(dict.fromkeys(banned, -math.inf))
    return bias


def check_bias(bias: dict[int, float], n_vocab: int) -> None:
    """Raises `SamplingError` for a token outside the vocabulary, not a number, or a ban on everything."""
    for token, value in bias.items():
        if not 0 <= token < n_vocab:
            raise SamplingError(f"logit_bias names token {token}; the vocabulary has {n_vocab}")
        if math.isnan(value):
            raise SamplingError(f"logit_bias of token {token} is not a number")
    if sum(value == -math.inf for value in bias.values()) >= n_vocab:
        raise SamplingError("logit_bias bans every token of the vocabulary")


def check_numbers(sampling: Sampling) -> None:
    """Raises `SamplingError` for what would put a NaN among the logits, which llama.cpp aborts the process for."""
    for name in ("temperature", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty"):
        if not math.isfinite(getattr(sampling, name)):
            raise SamplingError(f"{name} is not a finite number")
    if sampling.repeat_penalty <= 0:
        raise SamplingError(f"repeat_penalty is {sampling.repeat_penalty}; it must be greater than 0")


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of several choices: they follow the request's, so each is reproducible by itself."""
    return (seed + index) % _SEEDS


class GreedySampler:
    """The largest logit after the bias; the first of equals, as llama.cpp's own greedy sampler has it."""

    __slots__ = ("_tokens", "_values")

    def __init__(self, bias: dict[int, float]) -> None:
        self._tokens = np.fromiter(bias.keys(), dtype=np.intp, count=len(bias)) if bias else None
        self._values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))

    def pick(self, logits: Logits, ctx: int, output: int) -> int:  # noqa: ARG002
        if self._tokens is None:
            return int(logits.argmax())
        plain = logits[self._tokens]
        logits[self._tokens] += self._values
        best = int(logits.argmax())
        logits[self._tokens] = plain
        return best

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        pass


class ChainSampler:
    """A llama.cpp sampler chain. It keeps the request's random state and penalties across preemption."""

    __slots__ = ("_candidates", "_chain")

    def __init__(
        self,
        order: Sequence[Stage],
        sampling: Sampling,
        bias: dict[int, float],
        seed: int,
        *,
        candidates: Candidates,
        n_vocab: int,
        n_ctx: int,
    ) -> None:
        self._candidates = candidates
        self._chain: Any = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for stage in order:
            part = _init(stage, sampling, bias, seed, n_vocab, n_ctx)
            if not part:
                self.close()
                raise SamplingError(f"llama.cpp refuses the sampler {stage.value} with these settings")
            llama.llama_sampler_chain_add(self._chain, part)

    def pick(self, logits: Logits, ctx: int, output: int) -> int:  # noqa: ARG002
        return self._candidates.choose(self._chain, logits)

    def accept(self, token: int) -> None:
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        chain, self._chain = self._chain, None
        if chain:
            llama.llama_sampler_free(chain)


def make_sampler(
    sampling: Sampling,
    prompt: Sequence[int],
    seed: int,
    *,
    eog_tokens: Iterable[int],
    suppressed: Iterable[int],
    candidates: Candidates,
    n_vocab: int,
    n_ctx: int,
) -> Sampler:
    """The sampler of one choice. `candidates` is shared by all samplers of a vocabulary.

    `n_ctx` (tokens) is how far `repeat_last_n` -1 looks back. Raises `SamplingError`.
    """
    bias = merged_bias(sampling, eog_tokens, suppressed)
    check_numbers(sampling)
    check_bias(bias, n_vocab)
    order = stages(sampling, biased=bool(bias))
    if order[-1] is Stage.GREEDY and Stage.PENALTIES not in order:
        return GreedySampler(bias)
    chain = ChainSampler(order, sampling, bias, seed, candidates=candidates, n_vocab=n_vocab, n_ctx=n_ctx)
    if Stage.PENALTIES in order:
        last_n = sampling.repeat_last_n
        for token in prompt if last_n < 0 else prompt[-last_n:]:
            chain.accept(token)
    return chain


def _init(stage: Stage, sampling: Sampling, bias: dict[int, float], seed: int, n_vocab: int, n_ctx: int) -> Any:
    match stage:
        case Stage.LOGIT_BIAS:
            entries = (llama.llama_logit_bias * len(bias))(*(llama.llama_logit_bias(*item) for item in bias.items()))
            return llama.llama_sampler_init_logit_bias(n_vocab, len(bias), entries)
        case Stage.PENALTIES:
            last_n = n_ctx if sampling.repeat_last_n < 0 else min(sampling.repeat_last_n, n_ctx)
            return llama.llama_sampler_init_penalties(
                n_vocab, last_n, sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
            )
        case Stage.TOP_K:
            return llama.llama_sampler_init_top_k(min(sampling.top_k, n_vocab))
        case Stage.TOP_P:
            return llama.llama_sampler_init_top_p(sampling.top_p, 1)
        case Stage.MIN_P:
            return llama.llama_sampler_init_min_p(sampling.min_p, 1)
        case Stage.TEMPERATURE:
            return llama.llama_sampler_init_temp(sampling.temperature)
        case Stage.GREEDY:
            return llama.llama_sampler_init_greedy()
        case Stage.DIST:
            return llama.llama_sampler_init_dist(seed)
