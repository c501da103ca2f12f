"""Reranking and encoders in the engine, on tiny BERT models; and what only loaded files can say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.bert_files import BOS, EOS, N_CTX_TRAIN, SEP, write_bert
from support.engine_driver import load, settings_for
from support.gguf_files import Shape, write_model

from backends.base import Capabilities
from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.engine.embed import Embedder
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Embed, Embedded, Ended, Output, Task

TEMPLATE = "{query} | {document}"


@pytest.fixture(scope="module")
def rank_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rank") / "rank.gguf"
    return write_bert(path, pooling=gguf.PoolingType.RANK, rerank_template=TEMPLATE)


@pytest.fixture(scope="module")
def ranker(rank_path: Path) -> Iterator[Model]:
    loaded = load(settings_for(path=rank_path, n_ctx=512))
    yield loaded
    loaded.close()


def vectors(model: Model, *inputs: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    embedder, outputs = Embedder(model), list[Output]()
    embedder.add(Embed("a", inputs), outputs)
    while embedder.busy:
        embedder.step(outputs)
    embedded, ended = outputs
    assert isinstance(embedded, Embedded)
    assert ended == Ended("a", sum(map(len, inputs)), 0, 0)
    return embedded.vectors


def pooled(path: Path, tokens: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    model = load(settings_for(path=path, n_ctx=512))
    (vector,) = vectors(model, tokens)
    model.close()
    return np.array(vector)


def test_a_reranking_file_makes_a_reranking_worker(rank_path: Path, ranker: Model) -> None:
    inspection = LlamaCppBackend().inspect(settings_for(path=rank_path, n_ctx=512))
    assert inspection.capabilities == Capabilities(chat=False, completions=False, rerank=True)
    assert (ranker.facts.task, ranker.n_pooled, ranker.longest_input) == (Task.RANK, 1, N_CTX_TRAIN)


def test_the_file_says_how_its_prompts_begin_end_and_are_separated(ranker: Model) -> None:
    special = ranker.special_tokens
    assert (special.bos, special.eos, special.sep) == (BOS, EOS, SEP)
    assert (special.add_bos, special.add_eos, special.add_sep) == (True, True, True)
    assert ranker.chat_template("rerank") == TEMPLATE


def test_a_score_is_the_classifiers_output_for_the_pooled_vector(tmp_path: Path, ranker: Model) -> None:
    """The same weights with CLS pooling give the vector that the classifier sees; numpy does the rest."""
    tokens = (BOS, 40, 41, EOS, SEP, 50, 51, EOS)
    cls = load(settings_for(path=write_bert(tmp_path / "cls.gguf", pooling=gguf.PoolingType.CLS), n_ctx=512))
    embedder, outputs = Embedder(cls), list[Output]()
    embedder._finished = lambda values: tuple(values.tolist())  # the vector before it is scaled
    embedder.add(Embed("a", (tokens,)), outputs)
    embedder.step(outputs)
    cls.close()
    assert isinstance(outputs[0], Embedded)
    weights = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "cls.gguf").tensors}
    hidden = np.tanh(weights["cls.weight"] @ np.array(outputs[0].vectors[0]) + weights["cls.bias"])
    expected = weights["cls.output.weight"] @ hidden + weights["cls.output.bias"]
    assert vectors(ranker, tokens)[0] == pytest.approx(expected.tolist(), abs=1e-3)


def test_scores_do_not_depend_on_who_else_is_ranked(ranker: Model) -> None:
    rng = np.random.default_rng(3)
    inputs = [tuple(rng.integers(20, 500, size).tolist()) for size in (5, 40, 300, 7, 1, 90, 512)]
    together = vectors(ranker, *inputs)
    assert [len(scores) for scores in together] == [1] * len(inputs)
    alone = [vectors(ranker, one)[0] for one in inputs]
    np.testing.assert_allclose(together, alone, atol=1e-3)
    assert len(set(together)) == len(inputs)


def test_a_text_model_can_be_made_to_rank_when_it_has_a_classifier(tmp_path: Path) -> None:
    """Causal rerankers read their last token and may take an input in several batches."""
    path = write_model(
        tmp_path / "causal.gguf", Shape(architecture="qwen3", classes=2), metadata={"qwen3.pooling_type": 4}
    )
    whole = load(settings_for(path=path, n_ctx=512, n_ubatch=512))
    pieces = load(settings_for(path=path, n_ctx=512, n_batch=64, n_ubatch=64))
    assert (pieces.longest_input, pieces.n_batch) == (512, 64)
    long = tuple(np.random.default_rng(1).integers(20, 500, 200).tolist())
    scores = vectors(pieces, long)[0]
    assert scores == pytest.approx(vectors(whole, long)[0], abs=1e-2)
    assert sum(scores) == pytest.approx(1.0, abs=1e-5)  # llama.cpp ends this architecture with a softmax
    assert 0.01 < scores[0] < 0.99
    for model in (whole, pieces):
        model.close()


def test_an_encoder_pools_by_its_own_metadata(tmp_path: Path) -> None:
    tokens = (BOS, 30, 31, 32, EOS)
    kinds = {
        kind: write_bert(tmp_path / f"{kind}.gguf", pooling=kind)
        for kind in (gguf.PoolingType.MEAN, gguf.PoolingType.CLS)
    }
    mean, cls = (pooled(path, tokens) for path in kinds.values())
    assert np.linalg.norm(mean) == pytest.approx(1.0, abs=1e-5)
    assert mean @ cls < 0.999
