"""Chunks of a chat become parts, whatever the worker's habits."""

from __future__ import annotations

import pytest
from support.chat_answers import USAGE, call, chunk, whole

from swapd.api.answers import AnswerReader, Closed, Grew, Kind, Opened, Step


def told(steps: list[Step]) -> str:
    """Steps in short: `<0 TEXT`, a piece in quotes, `0>`."""
    made = []
    for step in steps:
        match step:
            case Opened(part):
                made.append(f"<{part.index} {part.kind.name}")
            case Grew(_, text):
                made.append(repr(text))
            case Closed(part):
                made.append(f"{part.index}>")
    return " ".join(made)


def read(*chunks: bytes) -> tuple[AnswerReader, str]:
    reader = AnswerReader()
    steps = [step for one in chunks for step in reader.chunk(one)] + reader.close()
    return reader, told(steps)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([chunk(role="assistant", content=""), chunk("stop")], "", id="an empty answer has no part"),
        pytest.param([chunk(content="a"), chunk(content="b")], "<0 TEXT 'a' 'b' 0>", id="text grows"),
        pytest.param(
            [chunk(reasoning_content="t"), chunk(content="a")], "<0 THOUGHT 't' 0> <1 TEXT 'a' 1>", id="reasoning first"
        ),
        pytest.param([chunk(reasoning="t")], "<0 THOUGHT 't' 0>", id="reasoning by its other name"),
        pytest.param(
            [chunk(reasoning_content="t", content="a")], "<0 THOUGHT 't' 0> <1 TEXT 'a' 1>", id="both in one chunk"
        ),
        pytest.param(
            [
                chunk(content="a"),
                chunk(tool_calls=[call(0, "f", "", "c0")]),
                chunk(tool_calls=[call(0, None, "{")]),
                chunk(tool_calls=[call(0, None, "}")]),
                chunk(tool_calls=[call(1, "g", "{}", "c1")]),
                chunk("tool_calls"),
            ],
            "<0 TEXT 'a' 0> <1 CALL '{' '}' 1> <2 CALL '{}' 2>",
            id="calls one after the other",
        ),
        pytest.param(
            [chunk(tool_calls=[call(0, "f", "{}", "c0"), call(1, "g", "{}", "c1")])],
            "<0 CALL '{}' 0> <1 CALL '{}' 1>",
            id="two calls in one chunk",
        ),
        pytest.param(
            [chunk(tool_calls=[call(None, "f", "{}", "c0"), call(None, "g", "{}", "c1")])],
            "<0 CALL '{}' 0> <1 CALL '{}' 1>",
            id="calls without an index are told apart by their ids",
        ),
        pytest.param(
            [chunk(tool_calls=[call(None, "f", "{}")]), chunk(tool_calls=[call(None, "f", "{}")])],
            "<0 CALL '{}' 0> <1 CALL '{}' 1>",
            id="calls without an index or an id are whole ones",
        ),
        pytest.param(
            [chunk(tool_calls=[call(0, "f", "{}", "c0")]), chunk(content="a")],
            "<0 CALL '{}' 0> <1 TEXT 'a' 1>",
            id="text after a call",
        ),
    ],
)
def test_a_stream_is_told_part_by_part(chunks: list[bytes], expected: str) -> None:
    assert read(*chunks)[1] == expected


def test_a_whole_answer_has_the_same_parts() -> None:
    reader = AnswerReader()
    calls = [call(None, "f", '{"x": 1}', "c0"), call(None, "g", "{}", "c1")]
    reader.whole(whole("tool_calls", reasoning_content="t", content="a", tool_calls=calls))
    assert [(part.kind, part.call_id, part.name, part.text) for part in reader.parts] == [
        (Kind.THOUGHT, "", "", "t"),
        (Kind.TEXT, "", "", "a"),
        (Kind.CALL, "c0", "f", '{"x": 1}'),
        (Kind.CALL, "c1", "g", "{}"),
    ]
    assert (reader.finish_reason, reader.calls, reader.model) == ("tool_calls", True, "tiny")


def test_the_end_tells_why_and_what_it_took() -> None:
    reader, _ = read(chunk(content="a"), chunk("stop", stop_reason="END"), chunk(usage=USAGE))
    assert (reader.finish_reason, reader.stop_string) == ("stop", "END")
    assert (reader.usage.prompt_tokens, reader.usage.cached_tokens, reader.usage.completion_tokens) == (20, 16, 7)
    assert reader.usage.reasoning_tokens == 0
    reader, _ = read(chunk("stop", stop_reason=128001))
    assert reader.stop_string is None, "vLLM names a token so, which no client asked to stop at"


def test_a_call_without_an_id_gets_one_of_its_own() -> None:
    reader, _ = read(chunk(tool_calls=[call(0, "f", "{}")]), chunk(tool_calls=[call(1, "g", "{}")]))
    assert [part.name for part in reader.parts] == ["f", "g"]
    assert len({part.call_id for part in reader.parts}) == 2


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b"{"], id="no JSON"),
        pytest.param([b"[]"], id="no object"),
        pytest.param([chunk(content=7)], id="a text that is none"),
        pytest.param([chunk(tool_calls=[call(0, None, "{}")])], id="arguments of no call"),
        pytest.param(
            [
                chunk(tool_calls=[call(0, "f", "", "c0")]),
                chunk(tool_calls=[call(1, "g", "", "c1")]),
                chunk(tool_calls=[call(0, None, "{}")]),
            ],
            id="back to a call that was left",
        ),
    ],
)
def test_what_is_no_answer_is_refused(chunks: list[bytes]) -> None:
    with pytest.raises(ValueError):
        read(*chunks)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": "a"}}]}'])
def test_what_is_no_whole_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        AnswerReader().whole(body)
