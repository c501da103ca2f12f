"""How the next token of a sequence is chosen: the settings' stages put together.

Greedy requests need one argmax over the logits; all others choose among candidates. Choosing and accepting are two
steps, so that a choice can be turned down. Must never accept a token twice, nor use `llama_sampler_sample`, which
accepts by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from backends.llama_cpp.engine.candidates import Candidates, check_row
from backends.llama_cpp.engine.chain import Chain
from backends.llama_cpp.engine.dry import Dry
from backends.llama_cpp.engine.edits import Bias, Edit, Logits, Penalties, apply, apply_among, undo
from backends.llama_cpp.engine.mirostat import Mirostat
from backends.llama_cpp.engine.stages import (
    EDITS,
    Last,
    Plan,
    check_bias,
    check_settings,
    merged_bias,
    plan,
)
from backends.llama_cpp.engine.types import Sampling, Stage

SLOW_VOCABULARY = 32_000
"""Stages that look at so many candidates take about 0.3 ms or more."""
_FEW = 8
"""What keeps less than this part of a vocabulary is worth finding out beforehand."""


class Sampler(Protocol):
    """What chooses the tokens of one sequence."""

    @property
    def is_slow(self) -> bool:
        """Whether a pick takes long enough, outside of Python, to be worth a thread of its own."""
        ...

    def pick(self, logits: Logits) -> int:
        """Choose the next token without accepting it.

        `logits` is a row of the batch, of which some may have been set to minus infinity. It is left as it was, so
        that another may be picked from it after more of it was masked. Raises `SamplingError` if it has no token to
        choose.
        """
        ...

    def accept(self, token: int) -> None:
        """The token that was emitted, picked here or not: what is to come depends on it. Once for every token."""
        ...

    def close(self) -> None:
        """Free what is held outside of Python. Closing twice is harmless."""
        ...


class GreedySampler:
    """The largest logit after the edits; the first of equals, as llama.cpp's own greedy sampler has it."""

    __slots__ = ("_edits",)
    is_slow = False

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def pick(self, logits: Logits) -> int:
        saved = apply(self._edits, logits)
        try:
            best = int(logits.argmax())
            if not math.isfinite(logits[best]):
                check_row(logits)
            return best
        finally:
            undo(saved, logits)

    def accept(self, token: int) -> None:
        for edit in self._edits:
            edit.accept(token)

    def close(self) -> None:
        pass


class Step(Protocol):
    """Something that is done to the candidates."""

    def apply(self, candidates: Candidates) -> None: ...

    def accept(self, token: int) -> None: ...

    def close(self) -> None: ...


class LateEdit:
    """An edit whose place in the order is behind a stage that cuts."""

    __slots__ = ("_edit",)

    def __init__(self, edit: Edit) -> None:
        self._edit = edit

    def apply(self, candidates: Candidates) -> None:
        apply_among(self._edit, *candidates.view())
        candidates.array.sorted = False

    def accept(self, token: int) -> None:
        self._edit.accept(token)

    def close(self) -> None:
        pass


class ChainSampler:
    """Edits of the row, then steps among the candidates. It keeps the request's random state across preemption."""

    __slots__ = ("_candidates", "_edits", "_largest_only", "_min_p", "_mirostat", "_steps", "is_slow")

    def __init__(
        self,
        edits: Sequence[Edit],
        steps: Sequence[Step],
        mirostat: Mirostat | None,
        candidates: Candidates,
        *,
        largest_only: int,
        min_p: float,
    ) -> None:
        """Without `mirostat` the last of the steps chooses. For `largest_only` and `min_p` see `Candidates.fill`."""
        self._edits = edits
        self._steps = steps
        self._mirostat = mirostat
        self._candidates = candidates
        self._largest_only = largest_only
        self._min_p = min_p
        self.is_slow = not (largest_only or min_p) and candidates.n_vocab >= SLOW_VOCABULARY

    def pick(self, logits: Logits) -> int:
        candidates = self._candidates
        saved = apply(self._edits, logits)
        try:
            candidates.fill(logits, largest_only=self._largest_only, min_p=self._min_p)
        finally:
            undo(saved, logits)
        for step in self._steps:
            step.apply(candidates)
        return self._mirostat.pick(*candidates.view()) if self._mirostat else candidates.selected()

    def accept(self, token: int) -> None:
        for edit in self._edits:
            edit.accept(token)
        for step in self._steps:
            step.accept(token)
        if self._mirostat:
            self._mirostat.accept(token)

    def close(self) -> None:
        for step in self._steps:
            step.close()


def make_sampler(
    sampling: Sampling,
    prompt: Sequence[int],
    seed: int,
    *,
    eog_tokens: Iterable[int],
    suppressed: Iterable[int],
    piece: Callable[[int], bytes],
    candidates: Candidates,
    n_vocab: int,
    n_ctx: int,
) -> Sampler:
    """The sampler of one choice. `candidates` is shared by all samplers of a vocabulary.

    `piece` gives a token's bytes, special tokens written out; `n_ctx` (tokens) is how far -1 looks back. Raises
    `SamplingError`.
    """
    check_settings(sampling)
    bias = merged_bias(sampling, eog_tokens, suppressed)
    check_bias(bias, n_vocab)
    planned = plan(sampling)
    edits = {
        stage: Penalties(sampling, n_ctx) if stage is Stage.PENALTIES else Dry(sampling, piece, n_ctx)
        for stage in planned.stages
        if stage in EDITS
    }
    for edit in edits.values():
        edit.prime(prompt)
    first = [Bias(bias)] if bias else []
    before: list[Edit] = [*first, *(edits[stage] for stage in planned.first)]
    among = planned.stages[len(planned.first) :]
    if planned.last is Last.GREEDY and not among:
        return GreedySampler(before)
    return ChainSampler(
        before,
        list(_steps(planned, edits, sampling, seed, n_vocab)),
        _mirostat(sampling, seed, n_vocab) if planned.last is Last.MIROSTAT else None,
        candidates,
        largest_only=sampling.top_k if among[:1] == (Stage.TOP_K,) and sampling.top_k < n_vocab // _FEW else 0,
        # Where more are to be kept than are above it, only llama.cpp's stage knows which.
        min_p=sampling.min_p if among[:1] == (Stage.MIN_P,) and sampling.min_keep <= 1 else 0,
    )


def _steps(planned: Plan, edits: Mapping[Stage, Edit], sampling: Sampling, seed: int, n_vocab: int) -> Iterator[Step]:
    """Every late edit by itself, and what lies between them in one chain each."""
    stages: list[Stage | Last] = []
    for stage in planned.stages[len(planned.first) :]:
        if stage not in edits:
            stages.append(stage)
            continue
        if stages:
            yield Chain(stages, sampling, seed, n_vocab)
        yield LateEdit(edits[stage])
        stages = []
    if planned.last is not Last.MIROSTAT:
        stages.append(planned.last)
    if stages:
        yield Chain(stages, sampling, seed, n_vocab)


def _mirostat(sampling: Sampling, seed: int, n_vocab: int) -> Mirostat:
    return Mirostat(sampling.mirostat, tau=sampling.mirostat_tau, eta=sampling.mirostat_eta, seed=seed, n_vocab=n_vocab)
