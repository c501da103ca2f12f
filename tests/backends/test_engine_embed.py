from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_driver import Answers, load, settings_for, tiny_settings

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.embed import Embedder, unit_vector
from backends.llama_cpp.engine.generate import DecodeError
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Embed, Embedded, Ended, Output


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    keys = {"n_ctx": 512, "n_ubatch": 64, "n_batch": 64, "embeddings": True}
    loaded = load(tiny_settings(tmp_path_factory.mktemp("mean"), **keys))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    keys = {"n_ctx": 512, "n_ubatch": 64, "n_batch": 64, "embeddings": True, "pooling": "last"}
    loaded = load(tiny_settings(tmp_path_factory.mktemp("last"), **keys))
    yield loaded
    loaded.close()


def tokens(model: Model, *texts: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(model.tokenize(text, add_special=True, parse_special=False)) for text in texts)


def run(model: Model, *requests: Embed) -> dict[str, tuple[Embedded | None, Ended]]:
    embedder, outputs = Embedder(model), list[Output]()
    for request in requests:
        embedder.add(request, outputs)
    while embedder.busy:
        embedder.step(outputs)
    Answers().take(outputs)
    vectors = {output.request_id: output for output in outputs if isinstance(output, Embedded)}
    return {
        output.request_id: (vectors.get(output.request_id), output) for output in outputs if isinstance(output, Ended)
    }


def test_every_input_has_a_unit_vector_in_its_place() -> None:
    mean = load(settings_for(n_ctx=256, n_ubatch=64, n_batch=64, embeddings=True))
    inputs = tokens(mean, "a fox runs", "the fox is running", "stock market prices")
    embedded, ended = run(mean, Embed("a", inputs))["a"]
    assert embedded is not None
    vectors = np.array(embedded.vectors)
    assert vectors.shape == (3, mean.n_embd)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far
    assert embedded.prompt_tokens == ended.prompt_tokens == sum(map(len, inputs))
    assert (ended.error, ended.completion_tokens) == (None, 0)
    mean.close()


def test_inputs_together_get_the_vectors_they_get_alone(mean: Model) -> None:
    inputs = tokens(mean, "a fox runs", "bread and wine", "the sea")
    together = run(mean, Embed("a", inputs))["a"][0]
    assert together is not None
    for position, one in enumerate(inputs):
        alone = run(mean, Embed("b", (one,)))["b"][0]
        assert alone is not None
        assert np.dot(alone.vectors[0], together.vectors[position]) > 0.9999


def test_inputs_of_several_requests_share_a_batch_and_large_requests_take_several(mean: Model) -> None:
    embedder, outputs = Embedder(mean), list[Output]()
    for request_id in ("a", "b"):
        embedder.add(Embed(request_id, tokens(mean, "one", "two")), outputs)
    embedder.step(outputs)
    assert not embedder.busy
    assert embedder.batches == 1
    embedder.add(Embed("c", ((5,) * 40,) * 5), outputs)
    while embedder.busy:
        embedder.step(outputs)
    assert embedder.batches == 6


def test_a_request_behind_a_large_one_gets_its_turn(mean: Model) -> None:
    embedder, outputs = Embedder(mean), list[Output]()
    embedder.add(Embed("large", ((5,) * 60,) * 20), outputs)
    embedder.add(Embed("small", ((7,),)), outputs)
    embedder.step(outputs)
    embedder.step(outputs)
    assert [output.request_id for output in outputs if isinstance(output, Ended)] == ["small"]
    embedder.end_all("over", outputs)
    assert not embedder.busy


def test_an_input_larger_than_a_micro_batch_is_a_clean_error(mean: Model) -> None:
    embedded, ended = run(mean, Embed("a", ((5,) * 65,)))["a"]
    assert embedded is None
    assert ended.error == "input 0 has 65 tokens; this model takes 64 (n_ubatch bounds it)"


def test_a_model_that_pools_the_last_token_takes_longer_inputs(last: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    long = tuple(rng.integers(20, 500, 300).tolist())
    embedded = run(last, Embed("a", (long,)))["a"][0]
    whole = load(tiny_settings(tmp_path, n_ctx=512, n_ubatch=512, embeddings=True, pooling="last"))
    reference = run(whole, Embed("a", (long,)))["a"][0]
    whole.close()
    assert embedded is not None
    assert reference is not None
    assert np.dot(embedded.vectors[0], reference.vectors[0]) > 0.9999
    assert "takes 512" in str(run(last, Embed("b", ((5,) * 513,)))["b"][1].error)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [((), "no input"), (((5,), ()), "input 1 is empty"), (((512,),), "outside the vocabulary")],
)
def test_inputs_that_make_no_sense_are_refused(mean: Model, inputs: Any, says: str) -> None:
    assert says in str(run(mean, Embed("a", inputs))["a"][1].error)


def test_a_cancelled_request_is_forgotten(mean: Model) -> None:
    embedder, outputs = Embedder(mean), list[Output]()
    embedder.add(Embed("a", ((5,),)), outputs)
    embedder.cancel("a", outputs)
    embedder.cancel("a", outputs)
    assert outputs == [Ended("a", 1, 0, 0, None)]
    assert not embedder.busy


def test_an_input_llama_cpp_refuses_fails_its_own_request(mean: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mean.decode

    def poisoned(batch: Batch) -> int:
        return -1 if 499 in batch.token[: len(batch)].tolist() else real(batch)

    monkeypatch.setattr(mean, "decode", poisoned)
    done = run(mean, Embed("a", ((5,),)), Embed("bad", ((6,), (499,))), Embed("b", ((7,),)))
    assert [done[key][1].error is None for key in ("a", "bad", "b")] == [True, False, True]


def test_a_fatal_code_is_raised(mean: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean, "decode", lambda _: -3)
    with pytest.raises(DecodeError, match="-3"):
        run(mean, Embed("a", ((5,),)))


def test_a_zero_vector_stays_zero() -> None:
    assert unit_vector(np.zeros(3, np.float32)) == (0.0, 0.0, 0.0)
    assert unit_vector(np.array([3.0, 4.0], np.float32)) == pytest.approx((0.6, 0.8))
