"""Answers of /v1/responses: items, numbered events in their order, what is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.chat_answers import USAGE, call, chunk, events_of, read_events, whole

from swapd.api.responses.answer import ResponseAnswer, response_of
from swapd.api.responses.store import Stored

STREAM = [
    chunk(role="assistant", content=""),
    chunk(reasoning_content="Hm"),
    chunk(reasoning_content="m."),
    chunk(content="Let me "),
    chunk(content="look."),
    chunk(tool_calls=[call(0, "look", "", "c0")]),
    chunk(tool_calls=[call(0, None, '{"at":')]),
    chunk(tool_calls=[call(0, None, ' "x"}')]),
    chunk("tool_calls"),
    chunk(usage=USAGE),
]
REASONING = {
    "id": "rs_7_0",
    "status": "completed",
    "type": "reasoning",
    "summary": [],
    "encrypted_content": None,
    "content": [{"type": "reasoning_text", "text": "Hmm."}],
}
MESSAGE = {
    "id": "msg_7_1",
    "status": "completed",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Let me look.", "annotations": [], "logprobs": []}],
}
CALL = {
    "id": "fc_7_2",
    "status": "completed",
    "type": "function_call",
    "call_id": "c0",
    "name": "look",
    "arguments": '{"at": "x"}',
}


class Keeper:
    """Keeps one response, or refuses to."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.kept: Stored | None = None

    def __call__(self, stored: Stored) -> bool:
        self.kept = stored
        return self.takes


def answer(keep: Keeper | None = None, **fields: Any) -> ResponseAnswer:
    return ResponseAnswer(response_of("resp_7", 1, {"model": "alias", **fields}), b'[{"role":"user"}]', keep)


def test_events_come_in_openais_order_and_are_numbered() -> None:
    events = events_of(answer(), STREAM)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [(event["type"], event.get("output_index")) for event in events] == [
        ("response.created", None),
        ("response.in_progress", None),
        ("response.output_item.added", 0),
        ("response.content_part.added", 0),
        ("response.reasoning_text.delta", 0),
        ("response.reasoning_text.delta", 0),
        ("response.reasoning_text.done", 0),
        ("response.content_part.done", 0),
        ("response.output_item.done", 0),
        ("response.output_item.added", 1),
        ("response.content_part.added", 1),
        ("response.output_text.delta", 1),
        ("response.output_text.delta", 1),
        ("response.output_text.done", 1),
        ("response.content_part.done", 1),
        ("response.output_item.done", 1),
        ("response.output_item.added", 2),
        ("response.function_call_arguments.delta", 2),
        ("response.function_call_arguments.delta", 2),
        ("response.function_call_arguments.done", 2),
        ("response.output_item.done", 2),
        ("response.completed", None),
    ]
    assert events[0]["response"]["status"] == "in_progress"
    begun = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [(item["type"], item["status"]) for item in begun] == [
        ("reasoning", "in_progress"),
        ("message", "in_progress"),
        ("function_call", "in_progress"),
    ]
    assert (begun[0]["content"], begun[1]["content"], begun[2]["arguments"]) == ([], [], "")
    assert events[11] == {
        "type": "response.output_text.delta",
        "sequence_number": 11,
        "item_id": "msg_7_1",
        "output_index": 1,
        "content_index": 0,
        "delta": "Let me ",
        "logprobs": [],
    }
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == [
        REASONING,
        MESSAGE,
        CALL,
    ]
    assert (events[19]["name"], events[19]["arguments"]) == ("look", '{"at": "x"}')
    response = events[-1]["response"]
    assert response["output"] == [REASONING, MESSAGE, CALL]
    assert (response["id"], response["status"], response["model"]) == ("resp_7", "completed", "tiny")
    assert response["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 16},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 27,
    }


def test_a_whole_response_has_the_items_of_the_stream() -> None:
    calls = [call(None, "look", '{"at": "x"}', "c0")]
    body = whole("tool_calls", reasoning_content="Hmm.", content="Let me look.", tool_calls=calls)
    response = json.loads(answer().whole(body))
    assert response["output"] == [REASONING, MESSAGE, CALL]
    assert response == events_of(answer(), STREAM)[-1]["response"]


def test_a_response_repeats_what_was_asked() -> None:
    asked = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "store": False,
        "tools": [{"type": "function"}],
    }
    response = json.loads(answer(**asked).whole(whole(content="a")))
    assert {name: response[name] for name in asked} == asked
    assert (response["tool_choice"], response["truncation"], response["previous_response_id"]) == (
        "auto",
        "disabled",
        None,
    )


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_what_was_cut_off_is_incomplete_and_so_is_its_last_item(finish: str, reason: str) -> None:
    chunks = [chunk(reasoning_content="Hm."), chunk(content="Le"), chunk(finish), chunk(usage=USAGE)]
    last = events_of(answer(), chunks)[-1]
    response = json.loads(answer().whole(whole(finish, reasoning_content="Hm.", content="Le")))
    assert last["type"] == "response.incomplete"
    assert last["response"] == response
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_a_response_is_stored_when_it_is_whole_as_its_client_got_it() -> None:
    keep = Keeper()
    streamed = answer(keep)
    sent = events_of(streamed, STREAM, ends=False)
    assert keep.kept is None
    assert sent
    last = read_events(streamed.end())[-1]
    assert keep.kept is not None
    assert json.loads(keep.kept.document) == last["response"]
    assert keep.kept.before == b'[{"role":"user"}]'
    keep = Keeper()
    body = answer(keep).whole(whole(content="a"))
    assert keep.kept is not None
    assert keep.kept.document == body


def test_a_response_that_could_not_be_stored_says_so() -> None:
    response = json.loads(answer(Keeper(takes=False)).whole(whole(content="a")))
    assert response["store"] is False


@pytest.mark.parametrize(
    ("status", "code"), [(429, "rate_limit_exceeded"), (400, "invalid_prompt"), (502, "server_error")]
)
def test_a_stream_that_breaks_ends_as_failed_and_is_not_stored(status: int, code: str) -> None:
    keep = Keeper()
    broken = answer(keep)
    events_of(broken, STREAM[:5], ends=False)
    (event,) = read_events(broken.failure(status, {"error": {"message": "because"}}))
    assert event["type"] == "response.failed"
    assert (event["response"]["status"], event["response"]["error"]) == ("failed", {"code": code, "message": "because"})
    assert [item["type"] for item in event["response"]["output"]] == ["reasoning"]
    assert keep.kept is None


def test_a_stream_that_never_began_begins_before_it_fails() -> None:
    events = read_events(answer().failure(503, {"error": {"message": "it did not load"}}))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert [event["sequence_number"] for event in events] == [0, 1, 2]


def test_a_refusal_stays_openais() -> None:
    envelope = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}
    assert json.loads(answer().refusal(400, envelope)) == envelope
