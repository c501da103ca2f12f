import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from swapd.api.ollama.answer import READERS, Document, Heading, Lines, Shape, Vectors
from swapd.api.openai import Endpoint
from swapd.errors import WorkerLostError

ENVELOPE = {"error": {"message": "it broke", "type": "server_error", "param": None, "code": "worker_lost"}}


@dataclass
class Clock:
    """Three seconds: one of waiting, one until the first token, one of tokens."""

    arrived_at: float = 1_700_000_000.0
    waited_s: float = 1.0
    first_token_s: float | None = 2.0

    def age_s(self) -> float:
        return 3.0


def chunk(finish: str | None = None, usage: tuple[int, int] | None = None, **delta: Any) -> bytes:
    document: dict[str, Any] = {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    if usage is not None:
        document = {"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    return json.dumps(document).encode()


def call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function} | ({"id": f"c{index}", "type": "function"} if name else {})


def lines(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def heading(shape: Shape = Shape.CHAT) -> Heading:
    return Heading("m:latest", shape, Clock())


CHUNKS = [
    chunk(role="assistant", content=""),
    chunk(reasoning_content="hm"),
    chunk(content="Hel"),
    chunk(content="lo"),
    chunk("length"),
    chunk(usage=(7, 3)),
]
TIMES = {
    "total_duration": 3_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_duration": 1_000_000_000,
    "eval_duration": 1_000_000_000,
    "prompt_eval_count": 7,
    "eval_count": 3,
}


def test_a_stream_is_a_line_for_each_piece_and_a_last_one_with_the_figures() -> None:
    answer = Lines(heading(), READERS[Endpoint.CHAT_COMPLETIONS])
    told = lines(b"".join(answer.event(one) for one in CHUNKS) + answer.end())
    head = {"model": "m:latest", "created_at": "2023-11-14T22:13:23.000000+00:00"}
    said = [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
    ]
    assert told[:-1] == [{**head, "message": message, "done": False} for message in said]
    last = {**head, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "length", **TIMES}
    assert told[-1] == last
    assert datetime.fromisoformat(told[-1]["created_at"]).tzinfo is not None
    assert all(isinstance(told[-1][name], int) for name in TIMES)


def test_a_document_is_the_same_in_one_piece() -> None:
    answer = Document(heading(Shape.GENERATE), READERS[Endpoint.CHAT_COMPLETIONS])
    assert b"".join(answer.event(one) for one in CHUNKS) == b""
    document = json.loads(answer.end())
    assert (document["response"], document["thinking"], document["done"]) == ("Hello", "hm", True)
    assert TIMES.items() <= document.items()


def test_calls_are_told_whole_with_objects_once_they_are_complete() -> None:
    answer = Lines(heading(), READERS[Endpoint.CHAT_COMPLETIONS])
    parts = [call(0, "", "a"), call(0, '{"x":'), call(0, "1}"), call(1, "{}", "b")]
    told = [answer.event(chunk(tool_calls=[part])) for part in parts]
    assert told[:3] == [b"", b"", b""]
    (first,) = lines(told[3])
    assert first["message"]["tool_calls"] == [{"id": "c0", "function": {"name": "a", "arguments": {"x": 1}}}]
    assert answer.event(chunk("tool_calls")) == b""
    second, last = lines(answer.end())
    assert second["message"]["tool_calls"] == [{"id": "c1", "function": {"name": "b", "arguments": {}}}]
    assert (last["done"], last["done_reason"]) == (True, "stop")


@pytest.mark.parametrize("arguments", ['{"x": "cut', "[1]", "7"])
def test_a_call_without_an_object_is_shown_as_the_text_it_is(arguments: str) -> None:
    answer = Document(heading(), READERS[Endpoint.CHAT_COMPLETIONS])
    answer.event(chunk(tool_calls=[call(0, arguments, "a")]))
    answer.event(chunk("length"))
    message = json.loads(answer.end())["message"]
    assert "tool_calls" not in message
    assert arguments in message["content"]


def test_whole_answers_of_workers_that_do_not_stream_are_read_too() -> None:
    made = {"content": None, "reasoning_content": "hm", "tool_calls": [{**call(0, '{"x":1}', "a"), "index": None}] * 2}
    whole = {
        "choices": [{"message": made, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    answer = Document(heading(), READERS[Endpoint.CHAT_COMPLETIONS])
    document = json.loads(answer.whole(json.dumps(whole).encode()))
    assert [one["function"]["arguments"] for one in document["message"]["tool_calls"]] == [{"x": 1}, {"x": 1}]
    assert (document["message"]["thinking"], document["eval_count"]) == ("hm", 3)


def test_completions_and_gaps_are_read_by_their_own_shapes() -> None:
    text = Lines(heading(Shape.GENERATE), READERS[Endpoint.COMPLETIONS])
    (line,) = lines(text.event(b'{"choices":[{"index":0,"text":"x"}]}'))
    assert line["response"] == "x"
    gap = Lines(heading(Shape.GENERATE), READERS[Endpoint.INFILL])
    (line,) = lines(gap.event(b'{"content":"y","stop":false,"tokens_predicted":1}'))
    assert line["response"] == "y"
    gap.event(b'{"content":"","stop":true,"stop_type":"limit","tokens_predicted":2,"tokens_evaluated":9}')
    (last,) = lines(gap.end())
    assert (last["done_reason"], last["eval_count"], last["prompt_eval_count"]) == ("length", 2, 9)


def test_counts_that_nobody_told_are_left_out() -> None:
    answer = Lines(heading(), READERS[Endpoint.CHAT_COMPLETIONS])
    (last,) = lines(answer.end())
    assert "eval_count" not in last


def test_errors_are_a_text_as_a_line_or_a_document_and_of_what_is_collected_an_error_with_a_status() -> None:
    stream = Lines(heading(), READERS[Endpoint.CHAT_COMPLETIONS])
    assert stream.failure(502, ENVELOPE) == b'{"error":"it broke"}\n'
    assert stream.refusal(400, ENVELOPE) == b'{"error":"it broke"}'
    with pytest.raises(WorkerLostError, match="it broke"):
        Document(heading(), READERS[Endpoint.CHAT_COMPLETIONS]).failure(502, ENVELOPE)


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"choices":[7]}', b'{"choices":', b'"x"'])
def test_what_is_no_chunk_raises(payload: bytes) -> None:
    with pytest.raises(ValueError):
        Lines(heading(), READERS[Endpoint.CHAT_COMPLETIONS]).event(payload)


def test_vectors_come_in_the_order_of_their_texts() -> None:
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    body = json.dumps({"data": data, "usage": {"prompt_tokens": 5}}).encode()
    document = json.loads(Vectors(heading(Shape.EMBED)).whole(body))
    assert (document["embeddings"], document["prompt_eval_count"]) == ([[1.0], [2.0]], 5)
    assert document["total_duration"] == 3_000_000_000
    assert json.loads(Vectors(heading(Shape.EMBEDDINGS)).whole(body)) == {"embedding": [1.0]}
    with pytest.raises(ValueError):
        Vectors(heading(Shape.EMBED)).whole(b"{}")
