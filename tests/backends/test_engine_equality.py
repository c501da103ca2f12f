"""A greedy answer does not depend on who else is served, as far as llama.cpp itself lets it.

With 32-bit floats it never does here. With SmolLM2's 4-bit weights and 16-bit cache it can, because llama.cpp's CPU
kernels change with what is in a micro-batch: flash attention takes another path from 64 tokens on, and one for a
single token beside 512 cells, and sums in the order of the cells. The engine's tokens are then those that the bare C
library gives for the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from support.engine_driver import ENDLESS, Driver, load, settings_for, text_of, tiny_settings

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Finish, Generate, Sampling

COUNT = 16
TILE_TOKENS = 64
"""ggml-cpu's flash attention works on tiles from this many tokens in a micro-batch on (ops.cpp `use_tiled`), which
multiply 32-bit floats where the path for fewer rounds the queries to the cache's 16 bits first."""
FEW_TOKENS = Sampling(temperature=0.0, logit_bias=((40, 50.0), (41, 50.0), (42, 50.0)), ignore_eos=True)
"""A random model that may say so little repeats itself: its tokens can be guessed."""


def tokens(rng: Random, count: int, first: int = 20, last: int = 500) -> tuple[int, ...]:
    return tuple(rng.randrange(first, last) for _ in range(count))


def crowd(max_tokens: int, sampling: Sampling = ENDLESS) -> list[Generate]:
    """Sixteen requests of many lengths. Four begin like another one, and one wants no cache."""
    rng = Random(16)
    prompts = [tokens(rng, rng.choice((3, 17, 60, 64, 65, 130))) for _ in range(COUNT - 4)]
    prompts += [(*prompts[index][:50], *tokens(rng, 20)) for index in range(4)]
    return [
        Generate(f"r{index}", prompt, sampling, max_tokens=max_tokens, cache_prompt=index != 5)
        for index, prompt in enumerate(prompts)
    ]


def in_a_crowd(driver: Driver, requests: Sequence[Generate]) -> dict[str, str]:
    """Their texts when they come one after the other while the first ones are being answered."""
    for request in requests:
        driver.add(request)
        driver.step()
    answers = driver.run()
    assert all(answer.finishes == {0: Finish.LENGTH} for answer in answers.values())
    return {request_id: answer.text for request_id, answer in answers.items()}


def ticking() -> Callable[[], float]:
    """A clock by which every batch takes the same time: guesses then always look worth a trial."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(tiny_settings(tmp_path_factory.mktemp("roomy"), n_ctx=4096, n_parallel=COUNT, n_ubatch=256))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A cache a third of what sixteen want."""
    loaded = load(tiny_settings(tmp_path_factory.mktemp("tight"), n_ctx=768, n_parallel=COUNT, n_ubatch=256))
    yield loaded
    loaded.close()


@pytest.mark.parametrize("guessing", [False, True], ids=["plain", "guessing"])
@pytest.mark.parametrize("room", ["roomy", "tight"])
def test_each_of_sixteen_says_what_it_says_alone(request: pytest.FixtureRequest, room: str, guessing: bool) -> None:
    model: Model = request.getfixturevalue(room)
    requests = crowd(80, FEW_TOKENS if guessing else ENDLESS)
    alone = {one.request_id: Driver(model, COUNT).one(one).text for one in requests}
    driver = Driver(model, COUNT, now_s=ticking()) if guessing else Driver(model, COUNT)
    assert in_a_crowd(driver, requests) == alone
    assert (driver.generator.preemptions > 0) == (room == "tight")
    assert (driver.generator.guesses_right > 0) == guessing
    assert len(set(alone.values())) > 4


# -- the backend itself ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Model]:
    loaded = load(settings_for(n_ctx=4096, n_parallel=COUNT, flash_attn=True))
    yield loaded
    loaded.close()


def logits_beside(model: Model, neighbours: int) -> np.ndarray[Any, Any]:
    """Logits of one token of a sequence that is decoded together with so many tokens of another one."""
    rng = Random(3)
    prompt, other, token = tokens(rng, 40, 1_000, 40_000), tokens(rng, 200, 1_000, 40_000), 1_234
    model.clear()
    batch = Batch(model.n_batch)
    batch.add_chunk(prompt, 0, 0, outputs=0)
    assert model.decode(batch) == 0
    batch.clear()
    if neighbours:
        batch.add_chunk(other[:neighbours], 0, 1, outputs=0)
    batch.add_chunk([token], len(prompt), 0, outputs=1)
    assert model.decode(batch) == 0
    return model.logits(0).copy()


def test_llama_cpp_itself_computes_otherwise_from_64_tokens_in_a_micro_batch_on(smollm2: Model) -> None:
    alone = logits_beside(smollm2, 0)
    for neighbours in (1, TILE_TOKENS - 2):
        assert np.array_equal(logits_beside(smollm2, neighbours), alone)
    for neighbours in (TILE_TOKENS - 1, 150):
        assert not np.array_equal(logits_beside(smollm2, neighbours), alone)


class Recording:
    """What an engine has llama.cpp do with the cache, in order: batches, and sequences that are dropped."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self._decode, self._remove = model.decode, model.remove
        self.steps: list[list[tuple[int, int, int, int]] | tuple[int, int]] = []
        """A batch is a list of token, position, sequence and whether logits are wanted."""
        monkeypatch.setattr(model, "decode", self.decode)
        monkeypatch.setattr(model, "remove", self.remove)

    def decode(self, batch: Batch) -> int:
        columns = (batch.token, batch.pos, batch.seq, batch.output)
        self.steps.append(list(zip(*(column[: len(batch)].tolist() for column in columns), strict=True)))
        return self._decode(batch)

    def remove(self, seq_id: int, start: int = -1) -> bool:
        self.steps.append((seq_id, start))
        return self._remove(seq_id, start)

    def said_by_the_c_library(self, ctx: Any, banned: Sequence[int]) -> list[list[int]]:
        """The same steps with nothing but llama.cpp: the largest logit of each output, by sequence in order."""
        memory, said = llama.llama_get_memory(ctx), {}
        llama.llama_memory_clear(memory, False)
        size = max(len(step) for step in self.steps)
        bare = llama.llama_batch_init(size, 0, 1)
        for step in self.steps:
            if isinstance(step, tuple):
                assert llama.llama_memory_seq_rm(memory, *step, -1)
                continue
            bare.n_tokens = len(step)
            for at, (token, position, seq_id, output) in enumerate(step):
                bare.token[at], bare.pos[at], bare.n_seq_id[at], bare.logits[at] = token, position, 1, output
                bare.seq_id[at][0] = seq_id
            assert llama.llama_decode(ctx, bare) == 0
            for at, (_, _, seq_id, output) in enumerate(step):
                if output:
                    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(llama.llama_get_model(ctx)))
                    logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(ctx, at), shape=(n_vocab,)).copy()
                    logits[list(banned)] = -np.inf
                    said.setdefault(seq_id, []).append(int(np.argmax(logits)))
        llama.llama_batch_free(bare)
        return list(said.values())


def stories(model: Model) -> list[Generate]:
    """Sixteen short prompts, together more than a tile."""
    topics = ("sea", "red fox", "bread", "moon", "two robots", "old clock", "violin", "rain")
    asked = [f"{start} of the {topic}, and" for topic in topics for start in ("This is the story", "The end")]
    prompts = [model.tokenize(text, add_special=True, parse_special=True) for text in asked]
    assert len(prompts) == COUNT
    assert max(map(len, prompts)) < TILE_TOKENS < sum(map(len, prompts))
    return [
        Generate(f"r{at}", tuple(prompt), ENDLESS, max_tokens=16, cache_prompt=False)
        for at, prompt in enumerate(prompts)
    ]


def test_with_4_bit_weights_every_token_is_the_one_the_c_library_gives_for_the_same_batches(
    smollm2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = stories(smollm2)
    alone = [Driver(smollm2, COUNT).one(one).text for one in requests]
    driver = Driver(smollm2, COUNT)
    recording = Recording(smollm2, monkeypatch)
    answers = driver.run(*requests)
    monkeypatch.undo()
    together = [answers[one.request_id].text for one in requests]
    said = recording.said_by_the_c_library(smollm2.ctx, sorted(smollm2.eog_tokens))
    assert sorted(text_of(smollm2, tokens) for tokens in said) == sorted(together)
    assert len(set(together)) == COUNT
    equal = sum(text == by_itself for text, by_itself in zip(together, alone, strict=True))
    print(f"{equal} of {COUNT} say among the others what they say alone")
