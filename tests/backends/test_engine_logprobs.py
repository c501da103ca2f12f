"""What is told of the tokens behind a text: the figures, and that entries and text go together at every split."""

from __future__ import annotations

import codecs
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from support.engine_driver import GREEDY, Driver, chat_tokens, load, settings_for, tiny_settings

from backends.llama_cpp.engine.logprobs import Logprobs
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.stages import SamplingError
from backends.llama_cpp.engine.types import MIN_LOGPROB, Finish, Generate, Piece, Sampling, TokenLogprobs


def entry(row: Sequence[float], token: int, count: int) -> TokenLogprobs:
    logprobs = Logprobs(count, lambda token: b"<%d>" % token)
    logits = np.array(row, np.float32)
    logprobs.observe(logits)
    logprobs.choose(token, logits)
    logprobs.say(0, shown=True)
    (told,) = logprobs.release(1)
    return told


def test_logprobs_are_the_logarithms_of_the_models_own_probabilities() -> None:
    row = [1.0, 3.0, -2.0, 3.5, 0.0]
    total = math.log(sum(map(math.exp, row)))
    told = entry(row, 2, 3)
    assert (told.chosen.token, told.chosen.text) == (2, b"<2>")
    assert told.chosen.value == pytest.approx(-2.0 - total, rel=1e-5)
    assert [one.token for one in told.likely] == [3, 1, 0]
    assert [one.value for one in told.likely] == pytest.approx([3.5 - total, 3.0 - total, 1.0 - total], rel=1e-5)


def test_large_logits_and_impossible_tokens_give_finite_figures() -> None:
    told = entry([1000.0, 999.0, -1e30, -math.inf], 2, 4)
    assert told.chosen.value == MIN_LOGPROB
    assert [one.token for one in told.likely] == [0, 1, 2], "what is impossible is not likely"
    assert told.likely[0].value == pytest.approx(-math.log(1 + math.exp(-1)), rel=1e-5)


def test_no_alternatives_are_told_where_none_are_asked_for() -> None:
    assert entry([1.0, 2.0], 0, 0).likely == ()


def test_a_row_without_numbers_is_an_error() -> None:
    with pytest.raises(SamplingError, match="not numbers"):
        entry([math.nan, 1.0], 1, 1)


# -- in the engine -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(tiny_settings(tmp_path_factory.mktemp("tiny"), n_ctx=512, n_parallel=2))
    yield loaded
    loaded.close()


@dataclass
class Scripted:
    """A sampler that has made up its mind."""

    tokens: list[int]
    at: int = field(default=0)
    is_slow: bool = False

    def pick(self, logits: object) -> int:
        return self.tokens[self.at]

    def accept(self, token: int) -> None:
        self.at += 1

    def close(self) -> None:
        pass


def spoken(model: Model, tokens: list[int], stop: tuple[str, ...], *, end: bool) -> list[Piece]:
    """The pieces of an answer of just these tokens."""
    driver = Driver(model, 1)
    script = [*tokens, next(iter(model.eog_tokens))] if end else tokens
    driver.add(Generate("a", (5, 6), GREEDY, max_tokens=len(script), stop=stop, logprobs=2, cache_prompt=False))
    (sequence,) = driver.generator._jobs["a"].live.values()
    sequence.sampler = Scripted(script)
    pieces: list[Piece] = []
    while driver.generator.busy:
        pieces += [output for output in driver.step() if isinstance(output, Piece)]
    return pieces


def check_alignment(model: Model, tokens: list[int], pieces: list[Piece]) -> None:
    """After each piece exactly the tokens are told that begin within the text so far."""
    bytes_of = [model.piece(token) for token in tokens]
    # A character that is not complete yet is the one that the next token has a part in.
    decode = codecs.getincrementaldecoder("utf-8")
    starts = [len(decode("replace").decode(b"".join(bytes_of[:count]))) for count in range(len(tokens))]
    text, told = "", []
    for piece in pieces:
        text += piece.text
        told += piece.logprobs
        expected = [at for at, start in enumerate(starts) if start < len(text) and bytes_of[at]]
        assert [entry.chosen.token for entry in told] == [tokens[at] for at in expected]
        assert [entry.offset for entry in told] == [starts[at] for at in expected]
    if "\ufffd" not in text:
        assert b"".join(entry.chosen.text for entry in told).startswith(text.encode())


TEXT = "né🙂 the stop ▁x"


@pytest.mark.parametrize("stop", [(), ("stop",), ("🙂",), ("é🙂 ", "zzz"), ("x",), ("▁xy",), ("n",)])
@pytest.mark.parametrize("end", [True, False])
def test_entries_go_with_their_text_when_every_byte_is_a_token(tiny: Model, stop: tuple[str, ...], end: bool) -> None:
    by_bytes = {tiny.piece(token): token for token in range(17, 273)}
    tokens = [by_bytes[bytes([byte])] for byte in TEXT.encode()]
    pieces = spoken(tiny, tokens, stop, end=end)
    check_alignment(tiny, tokens, pieces)
    cuts = [TEXT.index(one) for one in stop if one in TEXT]
    assert "".join(piece.text for piece in pieces) == TEXT[: min(cuts, default=len(TEXT))]
    assert pieces[-1].finish is (Finish.STOP if end or cuts else Finish.LENGTH)


@pytest.mark.parametrize("seed", range(30))
def test_entries_go_with_their_text_at_random_splits_and_stops(tiny: Model, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    alphabet = TEXT.encode() + b"\xff\xe2"
    ordinary = [token for token in range(17, tiny.n_vocab) if set(tiny.piece(token)) <= set(alphabet)]
    tokens = rng.choices(ordinary, k=rng.randrange(1, 30))
    whole = b"".join(map(tiny.piece, tokens)).decode("utf-8", errors="replace")
    stop = []
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(whole))
        stop.append(whole[at : at + rng.randrange(1, 5)])
    tokens = [token for one in tokens for token in ((one, 3) if rng.random() < 0.1 else (one,))]
    pieces = spoken(tiny, tokens, tuple(stop), end=rng.random() < 0.5)
    check_alignment(tiny, tokens, pieces)


def test_a_token_that_a_stop_string_cuts_in_two_is_told_and_one_that_it_cuts_off_is_not(tiny: Model) -> None:
    the, t, h = ({tiny.piece(token): token for token in range(17, tiny.n_vocab)}[one] for one in (b" the", b"t", b"h"))
    pieces = spoken(tiny, [t, the, h, t], ("heh",), end=True)
    assert "".join(piece.text for piece in pieces) == "t t"
    assert [entry.chosen.text for piece in pieces for entry in piece.logprobs] == [b"t", b" the"]


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Model]:
    loaded = load(settings_for(n_ctx=512, n_parallel=4))
    yield loaded
    loaded.close()


def answer(model: Model, **how: object) -> list[Piece]:
    driver = Driver(model, 4)
    driver.add(Generate("a", chat_tokens(model, "Count to five."), max_tokens=24, **how))  # type: ignore[arg-type]
    pieces: list[Piece] = []
    while driver.generator.busy:
        pieces += [output for output in driver.step() if isinstance(output, Piece)]
    return pieces


def test_a_real_models_greedy_tokens_are_its_likeliest_and_the_text_is_the_same_without(smollm2: Model) -> None:
    told = answer(smollm2, sampling=GREEDY, logprobs=5)
    plain = answer(smollm2, sampling=GREEDY)
    text = "".join(piece.text for piece in told)
    assert text == "".join(piece.text for piece in plain)
    assert not any(piece.logprobs for piece in plain)
    entries = [entry for piece in told for entry in piece.logprobs]
    assert b"".join(entry.chosen.text for entry in entries).decode() == text
    for one in entries:
        assert one.chosen == one.likely[0]
        values = [likely.value for likely in one.likely]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-6


def test_logprobs_are_those_before_any_sampler_had_a_say(smollm2: Model) -> None:
    plain = answer(smollm2, sampling=GREEDY, logprobs=3)[0].logprobs[0]
    best = plain.chosen.token
    banned = Sampling(temperature=0.0, logit_bias=((best, -math.inf),))
    told = answer(smollm2, sampling=banned, logprobs=3)[0].logprobs[0]
    assert told.likely == plain.likely
    assert told.chosen == plain.likely[1]


def test_every_choice_has_its_own_entries(smollm2: Model) -> None:
    pieces = answer(smollm2, sampling=Sampling(temperature=1.5, seed=3), logprobs=0, n=3)
    for index in range(3):
        own = [piece for piece in pieces if piece.index == index]
        joined = b"".join(entry.chosen.text for piece in own for entry in piece.logprobs)
        assert joined.decode("utf-8", errors="replace") == "".join(piece.text for piece in own)
