"""A token costs the same work at the end of a long text as at its beginning: in the engine, but for llama.cpp itself,
and on its way to the client."""

from __future__ import annotations

from collections.abc import Iterator
from time import thread_time

import pytest
from support.engine_driver import ENDLESS, Driver, load, settings_for
from support.gguf_files import Shape, write_model
from support.growth import Once, cost_of

from backends.llama_cpp.calls import Call, Switchboard
from backends.llama_cpp.chat.answers import ChoiceReader
from backends.llama_cpp.chat.families import GENERIC
from backends.llama_cpp.chat.reader import Reading
from backends.llama_cpp.chat.tools import Tool
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Generate, Output, Piece, Sampling
from backends.llama_cpp.responses import Dialect, Heading, Stream, Whole
from swapd.http.sse import Framer

LONG_TOKENS = 30_000
SLACK_US = 5.0
STOPS = ("</never>", "\n\n\n\n")
PENALIZED = Sampling(temperature=0, frequency_penalty=0.5, repeat_last_n=64, ignore_eos=True)
TOOLS = {"write": Tool("write", {"type": "object", "properties": {"text": {"type": "string"}}})}
CALL = '{"name": "write", "arguments": {"text": "'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A context for a long text. Its batches take no time: after the warm-up nothing is computed any more."""
    path = write_model(tmp_path_factory.mktemp("long") / "tiny.gguf", Shape(n_layer=1, n_ctx_train=2 * LONG_TOKENS))
    loaded = load(settings_for(path=path, n_ctx=2 * LONG_TOKENS, n_parallel=2, n_batch=64, n_ubatch=64))
    loaded.decode = lambda _batch: 0  # type: ignore[method-assign]
    yield loaded
    loaded.close()


@pytest.mark.parametrize("sampling", [ENDLESS, PENALIZED], ids=["greedy", "penalized"])
def test_a_token_costs_the_engine_the_same_after_thirty_thousand(model: Model, sampling: Sampling) -> None:
    def begin() -> Once:
        generator = Driver(model, n_parallel=2).generator
        generator.add(Generate("a", (5, 6, 7), sampling, stop=STOPS), [])
        return lambda: generator.step([])

    cost = cost_of(begin, LONG_TOKENS, SLACK_US)
    assert cost.is_flat(SLACK_US), cost


def heading(dialect: Dialect) -> Heading:
    return Heading(dialect, "r", "m", 0)


def reader() -> ChoiceReader:
    return ChoiceReader(Reading(GENERIC.format, TOOLS), lambda: "call00001")


@pytest.mark.parametrize("opening", ["", "Well, ", CALL], ids=["completion", "content", "arguments"])
def test_a_token_costs_its_way_to_the_client_the_same_after_thirty_thousand(opening: str) -> None:
    def begin() -> Once:
        dialect = Dialect.CHAT if opening else Dialect.COMPLETION
        stream = Stream(heading(dialect), {"r": 0}, 1, include_usage=True, new_reader=reader if opening else None)
        stream.feed([Piece("r", 0, opening, 1)])
        call, framer = Call(Switchboard(None, lambda _usage: None), "r"), Framer()  # type: ignore[arg-type]
        sent: list[int] = []

        def pass_on(outputs: list[Output]) -> bool:
            sent.append(len(framer.feed(stream.feed(outputs)).whole))
            return True

        call._sink = pass_on

        def once() -> None:
            call.put(Piece("r", 0, "word ", 1))
            call.tell()
            assert sent.pop() > 0

        return once

    cost = cost_of(begin, LONG_TOKENS, SLACK_US)
    assert cost.is_flat(SLACK_US), cost


@pytest.mark.parametrize("opening", ["", "Well, ", CALL], ids=["completion", "content", "arguments"])
def test_a_whole_answer_costs_four_times_as_much_for_four_times_the_tokens(opening: str) -> None:
    def seconds(tokens: int) -> float:
        dialect = Dialect.CHAT if opening else Dialect.COMPLETION
        whole = Whole(heading(dialect), {"r": 0}, 1, new_reader=reader if opening else None)
        began_s = thread_time()
        whole.feed([Piece("r", 0, opening, 1)])
        for _ in range(tokens):
            whole.feed([Piece("r", 0, "word " * 20, 1)])
        whole._open.clear()
        assert len(whole.answer()) > 100 * tokens
        return thread_time() - began_s

    short_s, long_s = (min(seconds(count) for _ in range(3)) for count in (2_500, 10_000))
    assert long_s < 8 * short_s
