"""What of a context's cache is shared, kept, moved to host memory and taken back."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from support.engine_driver import ENDLESS, Driver, load, tiny_settings

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Generate

SYSTEM = tuple(Random(1).choices(range(20, 500), k=300))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    keys = {"n_ctx": 1024, "n_parallel": 6, "n_batch": 256, "n_ubatch": 128}
    loaded = load(tiny_settings(tmp_path_factory.mktemp("tiny"), **keys))
    yield loaded
    loaded.close()


@pytest.fixture
def decoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every batch that was decoded."""
    counts: list[int] = []
    real = model.decode

    def decode(batch: Batch) -> int:
        counts.append(len(batch))
        return real(batch)

    monkeypatch.setattr(model, "decode", decode)
    return counts


def words(seed: int, count: int) -> tuple[int, ...]:
    return tuple(Random(seed).choices(range(20, 500), k=count))


def asked(request_id: str, prompt: tuple[int, ...], max_tokens: int = 8, n: int = 1) -> Generate:
    return Generate(request_id, prompt, ENDLESS, max_tokens=max_tokens, n=n)


def test_a_beginning_shared_by_requests_that_arrive_together_is_computed_once(model: Model, decoded: list[int]) -> None:
    prompts = {f"r{number}": SYSTEM + words(number, 10 + number) for number in range(6)}
    alone = {name: Driver(model, 6).one(asked(name, prompt)).text for name, prompt in prompts.items()}
    driver = Driver(model, 6)
    decoded.clear()
    answers = driver.run(*(asked(name, prompt) for name, prompt in prompts.items()))
    tails = sum(len(prompt) - len(SYSTEM) for prompt in prompts.values())
    assert sum(decoded) == len(SYSTEM) + tails + 6 * 7, "every prompt token once, then 7 of 8 answers' tokens each"
    ended = [answer.ended for answer in answers.values()]
    assert [end.cached_tokens for end in ended if end is not None] == [0] + [len(SYSTEM)] * 5
    assert {name: answer.text for name, answer in answers.items()} == alone


def test_a_short_common_beginning_keeps_nobody_waiting(model: Model) -> None:
    driver = Driver(model, 6)
    driver.add(asked("a", words(1, 20) + words(2, 40)), asked("b", words(1, 20) + words(3, 40)))
    driver.step()
    assert all(answer.prefilled is not None for answer in driver.answers.values())
    assert len(driver.answers) == 2


def test_those_who_wait_for_a_beginning_go_on_when_its_owner_is_cancelled(model: Model) -> None:
    driver = Driver(model, 6)
    driver.add(asked("a", SYSTEM + words(1, 9)), asked("b", SYSTEM + words(2, 9)))
    driver.step()
    assert "b" not in driver.answers
    driver.cancel("a")
    assert driver.run()["b"].tokens == {0: 8}


def test_a_preempted_sequence_comes_back_from_host_memory_without_being_computed_again(
    model: Model, decoded: list[int]
) -> None:
    requests = [asked(f"r{number}", words(number, 60), max_tokens=300) for number in range(6)]
    alone = {request.request_id: Driver(model, 6).one(request).text for request in requests}
    driver = Driver(model, 6)
    decoded.clear()
    answers = driver.run(*requests)
    assert driver.generator.preemptions > 0
    assert sum(decoded) == 6 * (60 + 299)
    assert {name: answer.text for name, answer in answers.items()} == alone


def test_without_host_memory_a_preempted_sequence_is_computed_again(model: Model, decoded: list[int]) -> None:
    requests = [asked(f"r{number}", words(number, 60), max_tokens=300) for number in range(6)]
    alone = {request.request_id: Driver(model, 6).one(request).text for request in requests}
    driver = Driver(model, 6, cache_ram_bytes=0)
    decoded.clear()
    answers = driver.run(*requests)
    assert driver.generator.preemptions > 0
    assert sum(decoded) > 6 * (60 + 299)
    assert {name: answer.text for name, answer in answers.items()} == alone


def test_a_preempted_request_that_is_cancelled_leaves_no_copy_behind(model: Model) -> None:
    driver = Driver(model, 6)
    driver.add(*(asked(f"r{number}", words(number, 60), max_tokens=300) for number in range(6)))
    while not driver.generator.preemptions:
        driver.step()
    assert driver.generator._cache.host.held_bytes > 0
    for number in range(6):
        driver.cancel(f"r{number}")
    assert driver.generator._cache.host.held_bytes == 0
    driver.check()


def test_finished_prefixes_leave_the_context_while_others_run_and_come_back(model: Model) -> None:
    first = SYSTEM + words(1, 100)
    driver = Driver(model, 6)
    driver.one(asked("first", first))
    assert len(driver.generator._cache.retired) == 1
    driver.one(asked("other", words(2, 200), max_tokens=20))
    assert [tuple(kept.tokens[:3]) for kept in driver.generator._cache.retired] == [words(2, 3)]
    assert [len(copy.tokens) for copy in driver.generator._cache.host] == [len(first) + 7]
    again = driver.one(asked("again", (*first, *words(3, 10))))
    assert again.ended is not None
    assert again.ended.cached_tokens == len(first)
    assert again.text == Driver(model, 6).one(asked("again", (*first, *words(3, 10)))).text


def test_part_of_a_copy_serves_another_and_the_copy_stays(model: Model) -> None:
    driver = Driver(model, 6)
    driver.one(asked("first", SYSTEM + words(1, 100)))
    driver.one(asked("other", words(2, 200), max_tokens=20))
    second = driver.one(asked("second", SYSTEM + words(4, 50)))
    assert second.ended is not None
    assert second.ended.cached_tokens == len(SYSTEM)
    assert len(SYSTEM) + 107 in [len(copy.tokens) for copy in driver.generator._cache.host]
    assert second.text == Driver(model, 6).one(asked("second", SYSTEM + words(4, 50))).text


def test_without_host_memory_finished_prefixes_stay_in_the_context(model: Model) -> None:
    driver = Driver(model, 6, cache_ram_bytes=0)
    driver.one(asked("first", SYSTEM + words(1, 100)))
    driver.one(asked("other", words(2, 200), max_tokens=20))
    assert len(driver.generator._cache.retired) == 2


def test_a_copy_that_llama_cpp_refuses_costs_a_prefill_and_no_request(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(model, 6)
    prompt = SYSTEM + words(1, 100)
    driver.one(asked("first", prompt))
    driver.one(asked("other", words(2, 200), max_tokens=20))
    monkeypatch.setattr(model, "restore", lambda seq_id, state: False)
    again = driver.one(asked("again", (*prompt, 7)))
    assert again.ended is not None
    assert (again.ended.cached_tokens, again.tokens) == (0, {0: 8})


def test_a_cache_that_cannot_be_cut_is_kept_in_host_memory_and_extended_as_a_whole(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "keeps_prefixes", False)
    driver = Driver(model, 6)
    prompt = words(1, 100)
    driver.one(asked("first", prompt))
    (copy,) = driver.generator._cache.host
    longer = driver.one(asked("longer", (*copy.tokens, *words(2, 5))))
    assert longer.ended is not None
    assert longer.ended.cached_tokens == len(copy.tokens) == 107
    shorter = driver.one(asked("shorter", (*prompt, *words(3, 5))))
    assert shorter.ended is not None
    assert shorter.ended.cached_tokens == 0
