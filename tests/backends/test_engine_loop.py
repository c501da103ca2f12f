"""The thread around the batching: its door, its end, and its failures."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from support.engine_driver import ENDLESS, GREEDY, Answers, load, tiny_settings

from backends.llama_cpp.engine import loop
from backends.llama_cpp.engine.loop import Engine, EngineClosedError, EngineFullError
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Embed, Ended, Finish, Generate, Output, Piece, Sampling

PROMPT = tuple(range(30, 60))
WAIT_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = load(tiny_settings(tmp_path_factory.mktemp("tiny"), n_ctx=2048, n_parallel=4))
    yield loaded
    loaded.close()


class Client:
    """An engine and the outputs it emitted, one list per batch."""

    def __init__(self, model: Model, directory: Any, **how: Any) -> None:
        model.clear()
        self.emitted: queue.Queue[list[Output]] = queue.Queue()
        self.threads: set[str] = set()
        self.answers = Answers()
        self.failures: list[BaseException] = []
        settings = tiny_settings(directory, n_parallel=4)
        how.setdefault("emit", self.emit)
        self.engine = Engine(model, settings, on_failure=self.failures.append, **how)

    def emit(self, outputs: Sequence[Output]) -> None:
        self.threads.add(threading.current_thread().name)
        self.emitted.put(list(outputs))

    def until_ended(self, *request_ids: str) -> Answers:
        while any(key not in self.answers or self.answers[key].ended is None for key in request_ids):
            self.answers.take(self.emitted.get(timeout=WAIT_S))
        return self.answers


@pytest.fixture
def client(model: Model, tmp_path: Any) -> Iterator[Client]:
    made = Client(model, tmp_path)
    made.engine.start()
    yield made
    made.engine.stop()


def test_requests_from_any_thread_are_answered_from_one(client: Client) -> None:
    ids = [f"r{number}" for number in range(6)]
    threads = [
        threading.Thread(target=client.engine.submit, args=(Generate(key, PROMPT, ENDLESS, max_tokens=20),))
        for key in ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = client.until_ended(*ids)
    assert client.threads == {"engine"}
    assert len({answers[key].text for key in ids}) == 1
    assert client.engine.active == 0
    assert client.engine.batches > 0


def test_one_emit_carries_everything_a_batch_brought(model: Model, tmp_path: Any) -> None:
    client = Client(model, tmp_path)
    for key in ("a", "b", "c"):
        client.engine.submit(Generate(key, (*PROMPT, ord(key)), ENDLESS, max_tokens=5, cache_prompt=False))
    client.engine.start()
    client.until_ended("a", "b", "c")
    client.engine.stop()
    assert client.engine.batches == 5, "three prompts in one batch, then four tokens for each"


def test_a_cancel_is_followed_by_the_end_and_nothing_else(client: Client) -> None:
    client.engine.submit(Generate("a", PROMPT, ENDLESS))
    client.answers.take(client.emitted.get(timeout=WAIT_S))
    client.engine.cancel("a")
    client.engine.cancel("a")
    client.engine.cancel("nobody")
    ended = client.until_ended("a")["a"].ended
    assert ended is not None
    assert ended.error is None
    assert 0 < ended.completion_tokens < 2000
    assert client.engine.active == 0
    client.engine.submit(Generate("a", PROMPT, ENDLESS, max_tokens=3))
    assert isinstance(client.emitted.get(timeout=WAIT_S)[-1], Piece)


def test_an_idle_engine_decodes_nothing_and_wakes_for_the_next_request(client: Client) -> None:
    client.engine.submit(Generate("a", PROMPT, ENDLESS, max_tokens=4))
    client.until_ended("a")
    batches = client.engine.batches
    client.engine.submit(Generate("b", PROMPT, ENDLESS, max_tokens=1, cache_prompt=False))
    client.until_ended("b")
    assert client.engine.batches == batches + 1


def test_stopping_ends_what_runs_with_the_reason_and_joins(model: Model, tmp_path: Any) -> None:
    client = Client(model, tmp_path)
    client.engine.start()
    client.engine.submit(Generate("a", PROMPT, ENDLESS))
    client.answers.take(client.emitted.get(timeout=WAIT_S))
    client.engine.stop()
    client.engine.stop()
    ended = client.until_ended("a")["a"].ended
    assert ended is not None
    assert ended.error == "the worker is shutting down"
    assert ended.completion_tokens > 0
    with pytest.raises(EngineClosedError):
        client.engine.submit(Generate("b", PROMPT, GREEDY))
    assert client.failures == []


def test_an_engine_that_never_started_can_be_stopped(model: Model, tmp_path: Any) -> None:
    Client(model, tmp_path).engine.stop()


def test_a_request_id_in_use_is_refused(client: Client) -> None:
    client.engine.submit(Generate("a", PROMPT, ENDLESS))
    with pytest.raises(ValueError, match="'a' is in use"):
        client.engine.submit(Generate("a", PROMPT, ENDLESS))


def test_more_requests_than_the_bound_are_refused(model: Model, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_REQUESTS", 2)
    engine = Client(model, tmp_path).engine
    engine.submit(Generate("a", PROMPT, ENDLESS))
    engine.submit(Generate("b", PROMPT, ENDLESS))
    with pytest.raises(EngineFullError, match="2 requests"):
        engine.submit(Generate("c", PROMPT, ENDLESS))
    assert engine.active == 2


def test_the_wrong_kind_of_request_is_answered_with_an_error(client: Client) -> None:
    client.engine.submit(Embed("e", (PROMPT,)))
    ended = client.until_ended("e")["e"].ended
    assert ended is not None
    assert ended.error == "this worker serves text only"


def test_a_bad_request_does_not_disturb_a_good_one(client: Client) -> None:
    client.engine.submit(Generate("bad", PROMPT, Sampling(repeat_penalty=-1.0)))
    client.engine.submit(Generate("good", PROMPT, ENDLESS, max_tokens=5))
    answers = client.until_ended("bad", "good")
    assert answers["bad"].ended is not None
    assert "repeat_penalty" in str(answers["bad"].ended.error)
    assert answers["good"].finishes == {0: Finish.LENGTH}


def test_a_lost_context_ends_every_request_and_tells_the_owner(
    model: Model, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(model, tmp_path)
    monkeypatch.setattr(model, "decode", lambda _: -3)
    for key in ("a", "b"):
        client.engine.submit(Generate(key, PROMPT, GREEDY))
    client.engine.start()
    answers = client.until_ended("a", "b")
    client.engine.stop()
    for key in ("a", "b"):
        ended = answers[key].ended
        assert ended is not None
        assert ended.error == "the engine failed: llama_decode returned -3"
    assert client.failures == [client.engine.failure]
    assert client.engine.active == 0
    with pytest.raises(EngineClosedError):
        client.engine.submit(Generate("c", PROMPT, GREEDY))


def test_an_owner_that_cannot_take_outputs_is_told_of_the_failure(model: Model, tmp_path: Any) -> None:
    def emit(outputs: list[Output]) -> None:
        raise RuntimeError("the loop is closed")

    told = threading.Event()
    client = Client(model, tmp_path, emit=emit)
    client.engine._on_failure = lambda _: told.set()
    client.engine.submit(Generate("a", PROMPT, GREEDY, max_tokens=1))
    client.engine.start()
    assert told.wait(WAIT_S)
    client.engine.stop()
    assert str(client.engine.failure) == "the loop is closed"


def test_every_ended_request_was_emitted_once(client: Client) -> None:
    for number in range(20):
        client.engine.submit(Generate(f"r{number}", PROMPT[: number + 1], ENDLESS, max_tokens=number % 4 + 1))
    client.until_ended(*(f"r{number}" for number in range(20)))
    client.engine.stop()
    left = [output for outputs in client.emitted.queue for output in outputs]
    assert not [output for output in left if isinstance(output, Ended)]
