"""llama.cpp's own fields of requests that generate text: types and ranges, and what never reaches a worker.

Servers of llama.cpp's family read these numbers with little care: CVE-2026-21869 was a negative `n_discard`, and a
count of any size becomes an allocation. The embedded worker checks its fields itself; this stands before every worker.
Owns the ranges. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

INT32_MAX = 2**31 - 1
MAX_PROBS = 100
"""Alternatives told of each token; llama-server has no bound."""
MAX_GRAMMAR_CHARS = 64 * 1024
MAX_BREAKERS = 32
MAX_STAGES = 64

DROPPED = frozenset(("n_discard", "id_slot", "slot_id", "n_cache_reuse"))
"""Fields that speak of a worker's insides: how its context shifts, and its slots, which are other clients' too."""

_Share = Annotated[float, Meta(ge=0, le=1)]
_Heat = Annotated[float, Meta(ge=0, le=100)]
_Window = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
_Count = Annotated[int, Meta(ge=0, le=INT32_MAX)]
_Probs = Annotated[int, Meta(ge=0, le=MAX_PROBS)]
_Choices = Annotated[int, Meta(ge=1, le=128)]


class LlamaFields(msgspec.Struct, kw_only=True):
    """The fields with a number or a size in them. Their names and senses are those of llama-server's README."""

    n_predict: _Window | None = None
    n_keep: _Window | None = None
    n_probs: _Probs | None = None
    n_cmpl: _Choices | None = None
    n_indent: Annotated[int, Meta(ge=0, le=1024)] | None = None
    t_max_predict_ms: _Window | None = None
    cache_prompt: bool | None = None
    ignore_eos: bool | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    post_sampling_probs: bool | None = None
    top_k: _Window | None = None
    min_p: _Share | None = None
    typical_p: _Share | None = None
    top_n_sigma: Annotated[float, Meta(ge=-1, le=100)] | None = None
    min_keep: _Count | None = None
    dynatemp_range: _Heat | None = None
    dynatemp_exponent: _Heat | None = None
    xtc_probability: _Share | None = None
    xtc_threshold: _Share | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    repeat_last_n: _Window | None = None
    dry_multiplier: _Heat | None = None
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    dry_allowed_length: _Count | None = None
    dry_penalty_last_n: _Window | None = None
    dry_sequence_breakers: Annotated[list[str], Meta(max_length=MAX_BREAKERS)] | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: _Heat | None = None
    mirostat_eta: Annotated[float, Meta(ge=0, le=10)] | None = None
    adaptive_target: Annotated[float, Meta(ge=-100, le=1)] | None = None
    adaptive_decay: Annotated[float, Meta(ge=0, le=0.99)] | None = None
    samplers: Annotated[str, Meta(max_length=MAX_STAGES)] | Annotated[list[str], Meta(max_length=MAX_STAGES)] | None = (
        None
    )
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)] | None = None
    json_schema: dict[str, Any] | bool | None = None
