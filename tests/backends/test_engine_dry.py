"""DRY against llama.cpp's own on random texts with many repetitions, and where breakers stop it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.engine_driver import load, tiny_settings
from support.llama_chain import LlamaChain, dry

from backends.llama_cpp.engine.dry import MAX_PENALTY, Dry
from backends.llama_cpp.engine.edits import apply
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Sampling

N_CTX = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(tiny_settings(Path(tmp_path_factory.mktemp("tiny")), n_ctx=256, n_parallel=1, prefix_slots=0))
    yield loaded
    loaded.close()


def ours_for(model: Model, **settings: object) -> Dry:
    sampling = Sampling(dry_multiplier=0.8, **settings)  # type: ignore[arg-type]
    return Dry(sampling, partial(model.piece, visible=True), N_CTX)


def penalties(edit: Dry, n_vocab: int) -> npt.NDArray[np.float32]:
    row = np.zeros(n_vocab, np.float32)
    apply([edit], row)
    return row


def byte_tokens(model: Model, text: str) -> list[int]:
    """The text in tokens of one byte each."""
    found = [model.tokenize(character, add_special=False, parse_special=False) for character in text]
    assert all(len(tokens) == 1 for tokens in found)
    return [tokens[0] for tokens in found]


@pytest.mark.parametrize("last_n", [-1, 1, 2, 7, 40])
@pytest.mark.parametrize("allowed_length", [0, 1, 2, 5])
@pytest.mark.parametrize("base", [1.0, 1.75, 9.0])
def test_the_penalties_are_llama_cpps(model: Model, last_n: int, allowed_length: int, base: float) -> None:
    rng = random.Random(f"{last_n} {allowed_length} {base}")
    alphabet = byte_tokens(model, "abc:")
    ours = ours_for(
        model,
        dry_base=base,
        dry_allowed_length=allowed_length,
        dry_penalty_last_n=last_n,
        dry_sequence_breakers=(":",),
    )
    theirs = LlamaChain(
        dry(
            model._vocab,
            multiplier=0.8,
            base=base,
            allowed_length=allowed_length,
            last_n=N_CTX if last_n < 0 else last_n,
            breakers=[b":"],
        )
    )
    weights = (5, 5, 5, 1)
    prompt = rng.choices(alphabet, weights, k=rng.randrange(60))
    ours.prime(prompt)
    theirs.accept(prompt)
    nothing = np.zeros(model.n_vocab, np.float32)
    for _ in range(100):
        expected = theirs.logits(nothing).clip(min=-MAX_PENALTY)
        np.testing.assert_allclose(penalties(ours, model.n_vocab), expected, rtol=1e-5)
        # Now and then what stood there before goes on, so that repetitions become long.
        token = prompt[-3] if len(prompt) > 3 and rng.random() < 0.8 else rng.choices(alphabet, weights)[0]
        prompt.append(token)
        ours.accept(token)
        theirs.accept([token])


def test_the_longer_a_repetition_the_more_its_next_token_costs(model: Model) -> None:
    text = byte_tokens(model, "abcdefabcd")
    costs = []
    for length in (7, 8, 9, 10):
        edit = ours_for(model)
        edit.prime(text[:length])
        row = penalties(edit, model.n_vocab)
        (token,) = byte_tokens(model, "abcdefabcde"[length]) if row.any() else [0]
        costs.append(-float(row[token]))
    assert costs == pytest.approx([0, 0.8, 0.8 * 1.75, 0.8 * 1.75**2])


def test_a_repetition_does_not_reach_across_a_breaker_of_several_tokens(model: Model) -> None:
    text = byte_tokens(model, "abcd\n\nabcd\n\nab")
    edit = ours_for(model, dry_sequence_breakers=("\n\n",))
    edit.prime(text)
    (token,) = byte_tokens(model, "c")
    assert penalties(edit, model.n_vocab)[token] == pytest.approx(-0.8), "two tokens, not eight"
    unbroken = ours_for(model, dry_sequence_breakers=())
    unbroken.prime(text)
    assert penalties(unbroken, model.n_vocab)[token] == pytest.approx(-0.8 * 1.75**6, rel=1e-5)


@pytest.mark.parametrize("primed", range(0, 14, 3))
def test_a_text_that_was_read_and_one_that_was_written_are_penalised_alike(model: Model, primed: int) -> None:
    text = byte_tokens(model, "ab:cab:caba:cab")
    whole = ours_for(model, dry_allowed_length=1, dry_sequence_breakers=("b:",))
    whole.prime(text)
    grown = ours_for(model, dry_allowed_length=1, dry_sequence_breakers=("b:",))
    grown.prime(text[:primed])
    for token in text[primed:]:
        grown.accept(token)
    assert (penalties(whole, model.n_vocab) == penalties(grown, model.n_vocab)).all()


def test_a_breaker_itself_may_always_come(model: Model) -> None:
    edit = ours_for(model, dry_sequence_breakers=(":",))
    edit.prime(byte_tokens(model, "abc:abc"))
    assert not penalties(edit, model.n_vocab).any()


def test_an_endless_repetition_stays_finite(model: Model) -> None:
    edit = ours_for(model, dry_base=100.0, dry_sequence_breakers=(), dry_penalty_last_n=-1)
    (token,) = byte_tokens(model, "a")
    edit.prime([token] * N_CTX)
    for _ in range(3 * N_CTX):
        edit.accept(token)
    assert penalties(edit, model.n_vocab)[token] == -MAX_PENALTY
