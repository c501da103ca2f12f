"""The batching itself, stepped by the test: no threads, no clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from support.engine_driver import (
    ENDLESS,
    GREEDY,
    Driver,
    chat_tokens,
    load,
    plain_greedy,
    settings_for,
    small_settings,
    text_of,
    tiny_settings,
)

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.crew import Crew
from backends.llama_cpp.engine.generate import DecodeError
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Finish, Generate, Piece, Prefilled, Sampling

TOPICS = ["the sea", "a red fox", "bread", "the moon", "two robots", "an old clock", "a violin", "rain"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(tiny_settings(tmp_path_factory.mktemp("tiny"), n_ctx=2048, n_parallel=8))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(small_settings(tmp_path_factory.mktemp("small")))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Model]:
    loaded = load(settings_for(n_ctx=512, n_parallel=6))
    yield loaded
    loaded.close()


@pytest.fixture
def driver(model: Model) -> Driver:
    return Driver(model, n_parallel=8)


def tokens_from(first: int, count: int) -> tuple[int, ...]:
    """Plain tokens; no two prompts with another first one share a beginning."""
    return tuple(20 + (first - 20 + number) % 240 for number in range(count))


def story(model: Model, topic: str, request_id: str = "a", **how: Any) -> Generate:
    how.setdefault("sampling", GREEDY)
    how.setdefault("max_tokens", 24)
    return Generate(request_id, chat_tokens(model, f"Tell me a story about {topic}."), **how)


def test_a_greedy_answer_is_that_of_a_plain_loop(driver: Driver, model: Model) -> None:
    prompt = chat_tokens(model, "Name three colours.")
    expected = plain_greedy(model, prompt, 40)
    answer = driver.one(Generate("a", prompt, GREEDY, max_tokens=40))
    assert answer.text == text_of(model, expected)
    assert answer.ended is not None
    assert (answer.ended.prompt_tokens, answer.ended.completion_tokens) == (len(prompt), len(expected))
    assert answer.tokens[0] == len(expected)
    assert answer.ended.error is None


@pytest.mark.parametrize("visible", [True, False])
def test_control_tokens_are_text_only_where_a_request_wants_them(smollm2: Model, visible: bool) -> None:
    (marker,) = smollm2.tokenize("<|im_start|>", add_special=False, parse_special=True)
    forced = Sampling(temperature=0.0, logit_bias=((marker, 1000.0),))
    tokens = frozenset({marker}) if visible else frozenset()
    answer = Driver(smollm2, n_parallel=1).one(
        Generate("a", chat_tokens(smollm2, "Hi"), forced, max_tokens=3, visible_tokens=tokens)
    )
    assert answer.text == ("<|im_start|>" * 3 if visible else "")


def test_eight_requests_share_every_batch(driver: Driver, model: Model) -> None:
    requests = [story(model, topic, topic) for topic in TOPICS]
    alone = {request.request_id: Driver(model, 8).one(request).text for request in requests}
    driver = Driver(model, 8)
    driver.add(*requests)
    for count in (1, 2, 3):
        driver.step()
        assert [job.completion_tokens for job in driver.generator._jobs.values()] == [count] * 8
    answers = driver.run()
    assert {request_id: answer.text for request_id, answer in answers.items()} == alone
    assert all(answer.finishes[0] is Finish.LENGTH for answer in answers.values())


def test_a_stream_goes_on_while_a_long_prompt_is_read(driver: Driver, model: Model) -> None:
    long_prompt = tuple((chat_tokens(model, "Once upon a time there was a king. " * 200))[:1500])
    driver.add(story(model, "the sea", "stream", max_tokens=60))
    driver.step()
    driver.add(Generate("long", long_prompt, GREEDY, max_tokens=2))
    steps = 0
    while driver.answers["long"].prefilled is None if "long" in driver.answers else True:
        pieces = [output for output in driver.step() if isinstance(output, Piece)]
        assert "stream" in [piece.request_id for piece in pieces]
        steps += 1
    assert steps == math.ceil(1500 / (model.n_ubatch - 1))


def test_whole_tiles_of_prompts_come_first_in_a_batch_and_single_tokens_last(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[list[int]] = []
    decode = driver.model.decode

    def note(batch: Batch) -> int:
        rows = batch.seq[: len(batch)].tolist()
        lengths.append([len(list(group)) for _, group in itertools.groupby(rows)])
        return decode(batch)

    monkeypatch.setattr(driver.model, "decode", note)
    driver.add(Generate("stream", tokens_from(20, 10), ENDLESS, max_tokens=8))
    driver.step()
    driver.add(
        Generate("odd", tokens_from(60, 30), ENDLESS, max_tokens=2),
        Generate("whole", tokens_from(100, 64), ENDLESS, max_tokens=2),
    )
    driver.step()
    assert lengths == [[10], [64, 30, 1]]
    assert driver.run()["stream"].tokens == {0: 8}


def test_finished_conversations_leave_the_context_before_a_long_prompt_is_read(driver: Driver) -> None:
    for first in (20, 21):
        driver.run(Generate(f"past {first}", tokens_from(first, 200), ENDLESS, max_tokens=2))
    assert len(driver.generator._cache.retired) == 2
    driver.add(Generate("short", tokens_from(100, 100), ENDLESS, max_tokens=1))
    driver.step()
    assert len(driver.generator._cache.retired) == 3
    driver.add(Generate("long", tokens_from(110, 400), ENDLESS, max_tokens=1))
    driver.step()
    assert len(driver.generator._cache.host) == 2
    assert [len(kept.tokens) for kept in driver.generator._cache.retired] == [100, 400]


def test_prefilled_says_the_counts_before_the_first_piece(driver: Driver, model: Model) -> None:
    request = story(model, "bread")
    driver.add(request)
    assert driver.step()[0] == Prefilled("a", len(request.prompt), 0)


def test_max_tokens_is_exact_when_the_end_is_ignored(smollm2: Model) -> None:
    driver = Driver(smollm2, 6)
    prompt = chat_tokens(smollm2, "Say hi.")
    assert driver.one(Generate("a", prompt, GREEDY, max_tokens=100)).finishes[0] is Finish.STOP
    answer = driver.one(Generate("b", prompt, ENDLESS, max_tokens=100))
    assert answer.finishes[0] is Finish.LENGTH
    assert answer.ended is not None
    assert answer.ended.completion_tokens == answer.tokens[0] == 100


def test_the_end_token_is_counted_and_not_shown(smollm2: Model) -> None:
    driver = Driver(smollm2, 6)
    prompt = chat_tokens(smollm2, "Say hi.")
    expected = plain_greedy(smollm2, prompt, 100)
    assert expected[-1] in smollm2.eog_tokens
    answer = driver.one(Generate("a", prompt, GREEDY, max_tokens=100))
    assert answer.finishes[0] is Finish.STOP
    assert answer.tokens[0] == len(expected)
    assert "<|im_end|>" not in answer.text


def test_a_stop_string_ends_the_choice_and_is_not_shown(driver: Driver, model: Model) -> None:
    whole = driver.one(story(model, "the sea")).text
    stop = whole[20:31]
    answer = driver.one(story(model, "the sea", "b", stop=(stop,)))
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finishes[0] is Finish.STOP
    assert answer.ended is not None
    assert answer.ended.completion_tokens < 24


def test_a_second_request_takes_its_prefix_from_the_first(driver: Driver, model: Model) -> None:
    first = driver.one(story(model, "the moon"))
    again = driver.one(story(model, "the moon", "b"))
    prompt_tokens = len(story(model, "the moon").prompt)
    assert first.prefilled == Prefilled("a", prompt_tokens, 0)
    assert again.prefilled == Prefilled("b", prompt_tokens, prompt_tokens - 1)
    assert again.text == first.text
    assert again.ended is not None
    assert again.ended.cached_tokens == prompt_tokens - 1


def test_a_conversation_that_goes_on_reuses_its_answer_too(driver: Driver, model: Model) -> None:
    opening = chat_tokens(model, "Name a fruit.")
    answer = plain_greedy(model, opening, 8)
    driver = Driver(model, 8)
    driver.one(Generate("a", opening, GREEDY, max_tokens=8))
    longer = (*opening, *answer, *chat_tokens(model, "And another?"))
    second = driver.one(Generate("b", longer, GREEDY, max_tokens=8))
    assert second.prefilled is not None
    assert second.prefilled.cached_tokens == len(opening) + 7, "the last sampled token was never decoded"
    assert len(driver.generator._cache.retired) == 1, "the longer one replaces its beginning"
    assert second.text == text_of(model, plain_greedy(model, longer, 8))


def test_a_prefix_is_shared_from_a_sequence_that_is_still_running(driver: Driver, model: Model) -> None:
    driver.add(story(model, "rain", "a", max_tokens=40))
    for _ in range(3):
        driver.step()
    second = driver.run(story(model, "rain", "b", max_tokens=40))
    assert second["b"].prefilled is not None
    assert second["b"].prefilled.cached_tokens == len(story(model, "rain").prompt) - 1
    assert second["b"].text == second["a"].text


def test_without_cache_prompt_nothing_is_taken_and_nothing_left(driver: Driver, model: Model) -> None:
    driver.one(story(model, "the moon", "a", cache_prompt=False))
    assert len(driver.generator._cache.retired) == 0
    driver.one(story(model, "the moon", "b"))
    third = driver.one(story(model, "the moon", "c", cache_prompt=False))
    assert third.prefilled is not None
    assert third.prefilled.cached_tokens == 0


def test_several_choices_need_one_prefill_and_differ(driver: Driver, model: Model) -> None:
    request = story(model, "two robots", n=3, sampling=Sampling(temperature=1.5, seed=11), max_tokens=16)
    driver.add(request)
    driver.step()
    assert driver.generator.batches == 1
    answer = driver.run()["a"]
    assert sorted(answer.finishes) == [0, 1, 2]
    assert len(set(answer.texts.values())) == 3
    assert answer.ended is not None
    assert answer.ended.prompt_tokens == len(request.prompt)
    assert answer.ended.completion_tokens == sum(answer.tokens.values()) == 48


def test_greedy_choices_are_all_the_same(driver: Driver, model: Model) -> None:
    texts = driver.one(story(model, "bread", n=3)).texts
    assert len(texts) == 3
    assert len(set(texts.values())) == 1


def test_more_choices_than_places_take_turns(model: Model) -> None:
    driver = Driver(model, n_parallel=2)
    answer = driver.one(story(model, "rain", n=5, max_tokens=6))
    assert sorted(answer.finishes) == [0, 1, 2, 3, 4]


def test_a_seed_gives_the_same_text_again_and_choice_i_is_seed_plus_i(driver: Driver, model: Model) -> None:
    hot = Sampling(temperature=1.2, seed=5)
    first = driver.one(story(model, "a violin", "a", sampling=hot, n=2, cache_prompt=False)).texts
    again = driver.one(story(model, "a violin", "b", sampling=hot, n=2, cache_prompt=False)).texts
    assert again == first
    assert Driver(model, 8).one(story(model, "a violin", sampling=Sampling(temperature=1.2, seed=6))).text == first[1]


def test_a_bias_and_penalties_reach_the_sampler(smollm2: Model) -> None:
    driver = Driver(smollm2, 6)
    (token,) = smollm2.tokenize(" fox", add_special=False, parse_special=False)
    forced = Sampling(temperature=0, logit_bias=((token, 1000.0),))
    assert driver.one(story(smollm2, "rain", sampling=forced, max_tokens=3)).text == " fox fox fox"
    once = Sampling(temperature=0, logit_bias=((token, 1000.0),), presence_penalty=2000.0)
    assert driver.one(story(smollm2, "rain", "b", sampling=once, max_tokens=3)).text.count(" fox") == 1


def test_a_cancelled_request_is_gone_before_the_next_batch(driver: Driver, model: Model) -> None:
    driver.add(story(model, "the sea", "a", max_tokens=200), story(model, "bread", "b", max_tokens=5, n=2))
    driver.step()
    driver.cancel("a")
    ended = driver.answers["a"].ended
    assert ended is not None
    assert (ended.error, ended.completion_tokens) == (None, 1)
    assert not any(output.request_id == "a" for output in driver.step())
    driver.cancel("a")
    driver.cancel("nobody")
    driver.run()
    assert driver.answers["b"].finishes == {0: Finish.LENGTH, 1: Finish.LENGTH}


def test_cancelling_a_waiting_request_leaves_the_others_alone(model: Model) -> None:
    driver = Driver(model, n_parallel=1)
    driver.add(story(model, "the sea", "a", max_tokens=5), story(model, "bread", "b", max_tokens=5))
    driver.step()
    driver.cancel("b")
    answers = driver.run()
    assert answers["b"].texts == {}
    assert answers["a"].finishes == {0: Finish.LENGTH}


def test_six_requests_that_exceed_the_cache_together_answer_as_if_alone(small: Model) -> None:
    requests = [story(small, topic, topic, max_tokens=150, sampling=ENDLESS) for topic in TOPICS[:6]]
    alone = {request.request_id: Driver(small, 6).one(request).text for request in requests}
    driver = Driver(small, 6)
    answers = driver.run(*requests)
    assert driver.generator.preemptions > 0
    assert {request_id: answer.text for request_id, answer in answers.items()} == alone
    for answer in answers.values():
        assert answer.finishes == {0: Finish.LENGTH}
        assert answer.tokens == {0: 150}


def test_a_preempted_sampler_goes_on_where_it_was(small: Model) -> None:
    def requests() -> list[Generate]:
        hot = Sampling(temperature=1.0, seed=3, presence_penalty=0.5, ignore_eos=True)
        return [story(small, topic, topic, max_tokens=150, sampling=hot) for topic in TOPICS[:5]]

    crowded = Driver(small, 5)
    together = crowded.run(*requests())
    assert crowded.generator.preemptions > 0
    alone = {request.request_id: Driver(small, 5).one(request) for request in requests()}
    assert {key: answer.texts for key, answer in together.items()} == {key: alone[key].texts for key in alone}
    assert {key: answer.tokens for key, answer in together.items()} == {key: {0: 150} for key in alone}


def test_the_oldest_request_is_never_preempted(small: Model) -> None:
    driver = Driver(small, 6)
    driver.add(*(story(small, topic, topic, max_tokens=150, sampling=ENDLESS) for topic in TOPICS[:6]))
    while driver.generator.busy:
        oldest = min(job.order for job in driver.generator._jobs.values())
        got = {sequence.job.order for sequence in driver.generator._roster.running}
        assert not got or oldest in got
        driver.step()


def test_one_request_fills_the_whole_context_and_ends_by_length(small: Model) -> None:
    request = story(small, "rain", max_tokens=None, sampling=ENDLESS)
    answer = Driver(small, 6).one(request)
    assert answer.finishes[0] is Finish.LENGTH
    assert answer.ended is not None
    assert len(request.prompt) + answer.ended.completion_tokens == small.n_ctx_request == 512


def test_retired_prefixes_give_way_before_anybody_waits(small: Model) -> None:
    driver = Driver(small, 6)
    for number in range(4):
        driver.one(story(small, TOPICS[number], f"old{number}", max_tokens=80, sampling=ENDLESS))
    assert len(driver.generator._cache.retired) > 1
    words = tuple(range(20, 420)) + (7,) * 20
    answer = driver.one(Generate("big", words, ENDLESS, max_tokens=10))
    assert answer.finishes == {0: Finish.LENGTH}
    assert driver.generator.preemptions == 0


def test_a_prompt_that_can_never_fit_is_refused_with_both_numbers(small: Model) -> None:
    driver = Driver(small, 6)
    ended = driver.one(Generate("a", (5,) * 512, GREEDY)).ended
    assert ended is not None
    assert ended.error == "the prompt has 512 tokens; the context holds 512"
    fits = driver.one(Generate("b", (5,) * 511, GREEDY, max_tokens=5))
    assert fits.tokens == {0: 1}


def test_what_no_sampler_can_do_fails_that_request_alone(driver: Driver, model: Model) -> None:
    bad = Sampling(logit_bias=((model.n_vocab, 1.0),))
    answers = driver.run(
        story(model, "rain", "bad", sampling=bad, n=2),
        Generate("alien", (1, model.n_vocab), GREEDY),
        Generate("empty", (), GREEDY),
        story(model, "rain", "good", max_tokens=3),
    )
    errors = {key: answer.ended.error for key, answer in answers.items() if answer.ended is not None}
    assert errors["good"] is None
    assert "logit_bias names token" in str(errors["bad"])
    assert "outside the vocabulary" in str(errors["alien"])
    assert "empty" in str(errors["empty"])


def test_logits_that_are_no_numbers_fail_their_request_alone(
    driver: Driver, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = story(model, "rain", "good", max_tokens=3), story(model, "bread", "bad", n=2, sampling=Sampling(seed=1))
    expected = driver.one(story(model, "rain", max_tokens=3)).text
    driver = Driver(model, 8)
    driver.add(bad, good)
    driver.step()
    real = model.logits
    broken = [place for place, running in enumerate(driver.generator._roster.running) if running.job.request is bad]
    monkeypatch.setattr(model, "logits", lambda row: real(row) * (math.nan if row in broken else 1))
    driver.step()
    monkeypatch.undo()
    answers = driver.run()
    assert answers["bad"].ended is not None
    assert answers["bad"].ended.error == "the model's logits are not numbers"
    assert answers["good"].text == expected


def test_tokens_that_several_threads_choose_are_those_that_one_chooses(smollm2: Model) -> None:
    def texts(members: int) -> dict[str, dict[int, str]]:
        driver = Driver(smollm2, 6)
        driver.generator._crew = Crew(members, driver.generator._choose)
        slow = [Sampling(temperature=0.9, top_k=0, seed=3), Sampling(mirostat=2, seed=4), Sampling(top_n_sigma=1.0)]
        requests = [
            story(smollm2, topic, topic, sampling=sampling, n=2, logprobs=1)
            for topic, sampling in zip(TOPICS, slow, strict=False)
        ]
        return {request_id: answer.texts for request_id, answer in driver.run(*requests).items()}

    assert texts(4) == texts(1)


class Interposed:
    """The model's decode with a fault in it."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real = model.decode
        self.faults: list[int] = []
        self.poison: int | None = None
        monkeypatch.setattr(model, "decode", self)

    def __call__(self, batch: Batch) -> int:
        if self.poison is not None and self.poison in batch.token[: len(batch)].tolist():
            return -1
        return self.faults.pop(0) if self.faults else self.real(batch)


def test_a_batch_that_llama_cpp_calls_invalid_fails_its_culprit_alone(
    driver: Driver, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {topic: Driver(model, 8).one(story(model, topic, topic)).text for topic in TOPICS[:4]}
    poisoned = Generate("poisoned", (9, 500, 9), GREEDY)
    decode = Interposed(model, monkeypatch)
    decode.poison = 500
    driver = Driver(model, 8)
    answers = driver.run(poisoned, *(story(model, topic, topic) for topic in TOPICS[:4]))
    assert answers["poisoned"].ended is not None
    assert "an invalid batch" in str(answers["poisoned"].ended.error)
    assert {topic: answers[topic].text for topic in TOPICS[:4]} == expected


def test_no_room_against_the_book_preempts_and_goes_on(
    driver: Driver, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {topic: Driver(model, 8).one(story(model, topic, topic)).text for topic in TOPICS[:3]}
    decode = Interposed(model, monkeypatch)
    driver = Driver(model, 8)
    driver.add(*(story(model, topic, topic) for topic in TOPICS[:3]))
    driver.step()
    decode.faults = [1, 1]
    driver.step()
    assert driver.generator.preemptions == 2
    answers = driver.run()
    assert {topic: answers[topic].text for topic in TOPICS[:3]} == expected


def test_no_room_for_a_request_alone_ends_it_with_the_reason(
    driver: Driver, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Interposed(model, monkeypatch)
    decode.faults = [1]
    ended = driver.one(story(model, "rain")).ended
    assert ended is not None
    assert "no room in the cache" in str(ended.error)
    assert driver.one(story(model, "rain", "b")).finishes == {0: Finish.LENGTH}


def test_a_fatal_code_is_raised(driver: Driver, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    Interposed(model, monkeypatch).faults = [-3]
    driver.add(story(model, "rain"))
    with pytest.raises(DecodeError, match="-3"):
        driver.step()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_every_request_is_answered_as_if_alone(small: Model, seed: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    prompts = [tuple(random.choices(range(20, 500), k=random.choice((1, 5, 90, 200)))) for _ in range(5)]
    prompts.append(prompts[-1] + tuple(random.choices(range(20, 500), k=30)))
    alone = [Driver(small, 4).one(Generate("a", prompt, ENDLESS, max_tokens=120)).text for prompt in prompts]
    driver = Driver(small, random.randint(1, 6))
    asked: dict[str, tuple[int, int]] = {}
    cancelled: set[str] = set()
    while len(asked) < 15 or driver.generator.busy:
        if len(asked) < 15 and random.random() < 0.2:
            which, n, request_id = random.randrange(len(prompts)), random.choice((1, 1, 3)), f"r{len(asked)}"
            asked[request_id] = which, n
            keep = random.random() < 0.8
            driver.add(Generate(request_id, prompts[which], ENDLESS, max_tokens=120, n=n, cache_prompt=keep))
        if asked and random.random() < 0.01:
            request_id = random.choice(sorted(asked))
            if driver.answers.get(request_id) is None or driver.answers[request_id].ended is None:
                cancelled.add(request_id)
                driver.cancel(request_id)
        if driver.generator.busy:
            driver.step()
    assert driver.generator.preemptions > 0 or driver.generator._roster.n_parallel < 3
    for request_id, (which, n) in asked.items():
        answer = driver.answers[request_id]
        assert answer.ended is not None
        assert answer.ended.error is None
        if request_id not in cancelled:
            assert answer.texts == dict.fromkeys(range(n), alone[which])
            assert answer.ended.completion_tokens == 120 * n
        else:
            assert all(alone[which].startswith(text) for text in answer.texts.values())
