"""The sampler settings a client may send: llama-server's names and forms beside OpenAI's, and their bounds.

Owns the translation into the engine's `Sampling`. Pure but for the tokenizer, which may take its time: off the event
loop where a bias names texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from backends.llama_cpp.engine.types import Sampling, Stage
from backends.llama_cpp.errors import RequestError

MAX_BIASES = 4096
"""Entries, and also tokens that they come to."""
MAX_BIAS_CHARS = 256
MAX_BREAKERS = 32
MAX_BREAKER_CHARS = 40
"""llama.cpp cuts longer ones."""
BAN_BIAS = -100.0
"""OpenAI: a bias this low bans the token."""
INT32_MAX = 2**31 - 1
RANDOM_SEED = 2**32 - 1
"""llama.cpp's LLAMA_DEFAULT_SEED, which -1 also comes to: draw a fresh seed."""

Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Window = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
Heat = Annotated[float, Meta(ge=0, le=100)]
"""OpenAI ends at 2; llama.cpp's users go further."""
Bias = Annotated[float, Meta(ge=-1e6, le=100)] | bool
Biases = (
    Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)]
    | Annotated[tuple[tuple[int | str, Bias], ...], Meta(max_length=MAX_BIASES)]
)
Breaker = Annotated[str, Meta(min_length=1, max_length=MAX_BREAKER_CHARS)]


class Tokenizer(Protocol):
    """What is needed of the model here. Safe to call from any thread."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class SamplingBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every generation that say how tokens are chosen. What they do is said at `Sampling`."""

    temperature: Heat | None = None
    dynatemp_range: Heat | None = None
    dynatemp_exponent: Heat | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    top_n_sigma: Annotated[float, Meta(ge=-1, le=100)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    min_keep: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    repeat_last_n: Window | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    dry_multiplier: Heat | None = None
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: Annotated[tuple[Breaker, ...], Meta(max_length=MAX_BREAKERS)] | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Heat | None = None
    mirostat_eta: Annotated[float, Meta(ge=0, le=10)] | None = None
    adaptive_target: Annotated[float, Meta(ge=-100, le=1)] | None = None
    adaptive_decay: Annotated[float, Meta(ge=0, le=0.99)] | None = None
    samplers: str | tuple[str, ...] | None = None
    """The order of the stages, by name or by llama.cpp's letters."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: Biases | None = None
    """By token, or by a text of which every token is meant; false bans."""
    ignore_eos: bool | None = None


_BY_NAME = tuple(field.name for field in fields(Sampling) if field.name not in ("samplers", "seed", "logit_bias"))
"""What the engine calls as the client does."""


def sampling(body: SamplingBody, n_vocab: int, tokenizer: Tokenizer) -> Sampling:
    """The engine's settings, with llama.cpp's defaults for what is absent. Raises `RequestError` naming the field."""
    asked = {name: value for name in _BY_NAME if (value := getattr(body, name)) is not None}
    if body.samplers is not None:
        asked["samplers"] = _stages(body.samplers)
    seed = None if body.seed is None else body.seed % 2**32
    return Sampling(
        **asked,
        seed=None if seed == RANDOM_SEED else seed,
        logit_bias=_biases(body.logit_bias or {}, n_vocab, tokenizer),
    )


# -- the order of the stages -------------------------------------------------------------------------------

_LETTERS = {
    "e": Stage.PENALTIES,
    "d": Stage.DRY,
    "s": Stage.TOP_N_SIGMA,
    "k": Stage.TOP_K,
    "y": Stage.TYPICAL_P,
    "p": Stage.TOP_P,
    "m": Stage.MIN_P,
    "x": Stage.XTC,
    "t": Stage.TEMPERATURE,
    "a": Stage.ADAPTIVE_P,
}
_NICKNAMES = {"nucleus": Stage.TOP_P, "temp": Stage.TEMPERATURE, "typ": Stage.TYPICAL_P}
_NAMES = {
    **_NICKNAMES,
    **{spelt: stage for stage in Stage for spelt in (stage.value.replace("_", "-"), stage.value.replace("_", ""))},
    **{stage.value: stage for stage in Stage},
}


def _stages(asked: str | Sequence[str]) -> tuple[Stage, ...]:
    known: Mapping[str, Stage] = _LETTERS if isinstance(asked, str) else _NAMES
    found: list[Stage] = []
    for name in asked:
        stage = known.get(name.lower())
        if stage is None:
            offered = ", ".join(_LETTERS if isinstance(asked, str) else (stage.value for stage in Stage))
            raise RequestError(f"samplers: {name[:64]!r} is not a sampler ({offered})", param="samplers")
        if stage in found:
            raise RequestError(f"samplers names {stage.value} twice", param="samplers")
        found.append(stage)
    return tuple(found)


# -- biases ------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"-?[0-9]+")


def _biases(
    asked: Mapping[str, Bias] | Sequence[tuple[int | str, Bias]], n_vocab: int, tokenizer: Tokenizer
) -> tuple[tuple[int, float], ...]:
    """Every biased token with its bias. The keys of an object are ids if they are numbers, texts of a list never."""
    found: list[tuple[int, float]] = []
    if isinstance(asked, Mapping):
        pairs: Sequence[tuple[int | str, Bias]] = [
            (int(key[:20]) if _NUMBER.fullmatch(key) else key, value) for key, value in asked.items()
        ]
    else:
        pairs = asked
    for key, value in pairs:
        bias = _bias(key, value)
        found += [(token, bias) for token in _tokens(key, n_vocab, tokenizer)]
        if len(found) > MAX_BIASES:
            raise RequestError(f"logit_bias names more than {MAX_BIASES} tokens", param="logit_bias")
    return tuple(found)


def _tokens(key: int | str, n_vocab: int, tokenizer: Tokenizer) -> Sequence[int]:
    if isinstance(key, int):
        if not 0 <= key < n_vocab:
            raise RequestError(
                f"logit_bias: {key} is not a token id of this model (0 to {n_vocab - 1})", param="logit_bias"
            )
        return (key,)
    if len(key) > MAX_BIAS_CHARS:
        raise RequestError(
            f"logit_bias: a text has {len(key)} characters; {MAX_BIAS_CHARS} are allowed", param="logit_bias"
        )
    tokens = tokenizer.tokenize(key, add_special=False, parse_special=False)
    if not tokens:
        raise RequestError(f"logit_bias: {key!r} is no token of this model", param="logit_bias")
    return tuple(dict.fromkeys(tokens))


def _bias(key: int | str, value: Bias) -> float:
    if value is True:
        raise RequestError(
            f"logit_bias: {str(key)[:64]} is true; give a number, or false to ban the token", param="logit_bias"
        )
    if value is False or value <= BAN_BIAS:
        return float("-inf")
    return float(value)
