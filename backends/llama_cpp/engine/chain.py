"""The stages of sampling that llama.cpp carries out, as one chain of its samplers.

Owns the pointers. Must be given checked settings only: llama.cpp aborts the process or draws nonsense for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as llama

from backends.llama_cpp.engine.candidates import Candidates
from backends.llama_cpp.engine.stages import Last, SamplingError, temperatures
from backends.llama_cpp.engine.types import Sampling, Stage

_NEXT_TO_NOTHING = 1e-30
"""As `min_p`: takes away what has no probability. Its logarithm would make typical_p's sums no number, and xtc and
typical_p could keep what top_n_sigma has cut, which only sets logits to minus infinity."""


class Chain:
    """Some stages of one request, with their random state. `close` frees them."""

    __slots__ = ("_chain",)

    def __init__(self, stages: Sequence[Stage | Last], sampling: Sampling, seed: int, n_vocab: int) -> None:
        self._chain: Any = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for stage in stages:
            for sampler in _samplers(stage, sampling, seed, n_vocab):
                if not sampler:
                    self.close()
                    raise SamplingError(f"llama.cpp refuses the sampler {stage.value} with these settings")
                llama.llama_sampler_chain_add(self._chain, sampler)

    def apply(self, candidates: Candidates) -> None:
        """Cut, change or choose among the candidates."""
        llama.llama_sampler_apply(self._chain, candidates.pointer)

    def accept(self, token: int) -> None:
        """A token was emitted."""
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the stages. Closing twice is harmless."""
        chain, self._chain = self._chain, None
        if chain:
            llama.llama_sampler_free(chain)


def _samplers(stage: Stage | Last, sampling: Sampling, seed: int, n_vocab: int) -> list[Any]:
    keep = min(sampling.min_keep, n_vocab)
    match stage:
        case Stage.TOP_N_SIGMA:
            return [llama.llama_sampler_init_top_n_sigma(sampling.top_n_sigma), _drop_the_impossible()]
        case Stage.TOP_K:
            return [llama.llama_sampler_init_top_k(min(sampling.top_k, n_vocab))]
        case Stage.TYPICAL_P:
            return [_drop_the_impossible(), llama.llama_sampler_init_typical(sampling.typical_p, keep)]
        case Stage.TOP_P:
            return [llama.llama_sampler_init_top_p(sampling.top_p, keep)]
        case Stage.MIN_P:
            return [llama.llama_sampler_init_min_p(sampling.min_p, keep)]
        case Stage.XTC:
            return [llama.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, keep, seed)]
        case Stage.TEMPERATURE:
            middle, reach = temperatures(sampling)
            return [llama.llama_sampler_init_temp_ext(middle, reach, sampling.dynatemp_exponent)]
        case Last.GREEDY:
            return [llama.llama_sampler_init_greedy()]
        case Last.DIST:
            return [llama.llama_sampler_init_dist(seed)]
        case Last.ADAPTIVE_P:
            return [llama.llama_sampler_init_adaptive_p(sampling.adaptive_target, sampling.adaptive_decay, seed)]
        case Stage.PENALTIES | Stage.DRY | Stage.ADAPTIVE_P | Last.MIROSTAT:
            raise AssertionError(f"{stage} is not llama.cpp's to carry out here")


def _drop_the_impossible() -> Any:
    return llama.llama_sampler_init_min_p(_NEXT_TO_NOTHING, 1)
