"""Biases and penalties, alone and against llama.cpp's own."""

from __future__ import annotations

import random

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt
import pytest
from support.llama_chain import LlamaChain

from backends.llama_cpp.engine.edits import Bias, Penalties, apply, apply_among, undo
from backends.llama_cpp.engine.stages import window
from backends.llama_cpp.engine.types import Sampling

N_VOCAB = 50


def row(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(N_VOCAB).astype(np.float32) * 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repeat_penalty=1.3),
        Sampling(repeat_penalty=0.7, repeat_last_n=3),
        Sampling(frequency_penalty=0.9, repeat_last_n=8),
        Sampling(presence_penalty=-1.5, repeat_last_n=1),
        Sampling(repeat_penalty=1.1, frequency_penalty=0.4, presence_penalty=0.3, repeat_last_n=-1),
    ],
)
def test_penalties_change_logits_as_llama_cpps_do(sampling: Sampling) -> None:
    n_ctx = 20
    rng = random.Random(3)
    ours = Penalties(sampling, n_ctx)
    theirs = LlamaChain(
        llama.llama_sampler_init_penalties(
            N_VOCAB,
            window(sampling.repeat_last_n, n_ctx),
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
    )
    prompt = [rng.randrange(12) for _ in range(rng.randrange(30))]
    ours.prime(prompt)
    theirs.accept(prompt)
    for step in range(60):
        logits = row(step)
        logits[5] = -np.inf
        expected = theirs.logits(logits)
        before = logits.copy()
        saved = apply([ours], logits)
        np.testing.assert_allclose(logits, expected, rtol=1e-6)
        undo(saved, logits)
        assert (logits == before).all()
        token = rng.randrange(12)
        ours.accept(token)
        theirs.accept([token])


def test_a_prompt_shorter_than_the_window_and_no_prompt_are_fine() -> None:
    penalties = Penalties(Sampling(presence_penalty=1.0), n_ctx=100)
    penalties.prime(())
    assert len(penalties.tokens()) == 0
    penalties.accept(4)
    assert penalties.tokens().tolist() == [4]


def test_edits_of_the_same_token_add_up_and_are_undone_in_reverse() -> None:
    logits = np.zeros(N_VOCAB, np.float32)
    penalties = Penalties(Sampling(presence_penalty=2.0), n_ctx=10)
    penalties.prime((3, 4))
    saved = apply([Bias({3: 5.0, 9: -np.inf}), penalties], logits)
    assert (logits[3], logits[4], logits[9]) == (3.0, -2.0, -np.inf)
    undo(saved, logits)
    assert (logits == 0).all()


def test_candidates_in_any_order_are_edited_as_a_row_is() -> None:
    logits = row()
    penalties = Penalties(Sampling(repeat_penalty=1.5, frequency_penalty=0.5), n_ctx=50)
    penalties.prime((7, 3, 3, 40, 12))
    expected = logits.copy()
    apply([penalties], expected)
    ids = np.array([12, 1, 40, 3, 20], np.int32)
    among = logits[ids]
    apply_among(penalties, ids, among)
    assert among.tolist() == expected[ids].tolist()
    untouched = np.array([1.0, 2.0], np.float32)
    apply_among(penalties, np.array([1, 2], np.int32), untouched)
    assert untouched.tolist() == [1.0, 2.0]
