"""Anthropic's answers: blocks, events in their order, stop reasons, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.chat_answers import USAGE, call, chunk, events_of, read_events, whole

from swapd.api.anthropic import errors
from swapd.api.anthropic.answer import CountAnswer, MessageAnswer
from swapd.errors import LoadFailedError, QueueFullError, SwapdError, UnknownModelError

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


def test_events_come_in_anthropics_order() -> None:
    events = events_of(MessageAnswer(), STREAM)
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("ping", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[0]["message"] == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "c0", "name": "look", "input": {}},
    ]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    signature = deltas[2].pop("signature")
    assert signature
    assert deltas == [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "thinking_delta", "thinking": "m."},
        {"type": "signature_delta"},
        {"type": "text_delta", "text": "Let me "},
        {"type": "text_delta", "text": "look."},
        {"type": "input_json_delta", "partial_json": '{"at":'},
        {"type": "input_json_delta", "partial_json": ' "x"}'},
    ]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == {
        "input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 16,
        "output_tokens": 7,
    }


def test_a_whole_message_has_the_blocks_of_the_stream() -> None:
    body = whole(
        "tool_calls",
        reasoning_content="Hmm.",
        content="Let me look.",
        tool_calls=[call(None, "look", '{"at": "x"}', "c0")],
    )
    message = json.loads(MessageAnswer().whole(body))
    assert message["content"][0].pop("signature")
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hmm."},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "c0", "name": "look", "input": {"at": "x"}},
    ]
    assert (message["stop_reason"], message["usage"]["input_tokens"]) == ("tool_use", 4)


def test_tokens_of_thinking_are_told_where_the_worker_counts_them() -> None:
    usage = {**USAGE, "completion_tokens_details": {"reasoning_tokens": 5}}
    message = json.loads(MessageAnswer().whole(whole(content="a", usage=usage)))
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 5}
    assert "output_tokens_details" not in json.loads(MessageAnswer().whole(whole(content="a")))["usage"]


@pytest.mark.parametrize(
    ("finish", "stop_reason", "calls", "expected"),
    [
        ("stop", None, False, ("end_turn", None)),
        ("stop", "\n\n", False, ("stop_sequence", "\n\n")),
        ("stop", 42, False, ("end_turn", None)),
        ("length", None, False, ("max_tokens", None)),
        ("length", None, True, ("max_tokens", None)),
        ("tool_calls", None, True, ("tool_use", None)),
        ("stop", None, True, ("tool_use", None)),
        ("content_filter", None, False, ("refusal", None)),
        ("something new", None, False, ("end_turn", None)),
    ],
)
def test_why_a_message_ended(finish: str, stop_reason: Any, calls: bool, expected: tuple[str, str | None]) -> None:
    tools = {"tool_calls": [call(0, "f", "{}", "c0")]} if calls else {"content": "a"}
    message = json.loads(MessageAnswer().whole(whole(finish, stop_reason=stop_reason, **tools)))
    assert (message["stop_reason"], message["stop_sequence"]) == expected
    events = events_of(MessageAnswer(), [chunk(**tools), chunk(finish, stop_reason=stop_reason)])
    assert (events[-2]["delta"]["stop_reason"], events[-2]["delta"]["stop_sequence"]) == expected


def test_an_answer_without_a_word_is_a_message_without_blocks() -> None:
    events = events_of(MessageAnswer(), [chunk(role="assistant", content=""), chunk("stop"), chunk(usage=USAGE)])
    assert [event["type"] for event in events] == ["message_start", "ping", "message_delta", "message_stop"]


def test_arguments_that_were_cut_off_are_no_input_and_broken_ones_no_answer() -> None:
    calls = [call(0, "f", '{"a": "b', "c0")]
    message = json.loads(MessageAnswer().whole(whole("length", tool_calls=calls)))
    assert (message["content"][0]["input"], message["stop_reason"]) == ({}, "max_tokens")
    with pytest.raises(ValueError, match="call of 'f'"):
        MessageAnswer().whole(whole("tool_calls", tool_calls=calls))


def test_a_stream_that_breaks_ends_with_an_error_event() -> None:
    answer = MessageAnswer()
    events_of(answer, STREAM[:4], ends=False)
    (event,) = read_events(answer.failure(502, {"error": {"message": "the worker was lost", "code": "worker_lost"}}))
    error = {"type": "api_error", "message": "the worker was lost", "code": "worker_lost"}
    assert event == {"type": "error", "error": error}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_error_has_the_type_of_its_status(status: int, kind: str) -> None:
    body = json.loads(MessageAnswer().refusal(status, {"error": {"message": "because"}}))
    assert body == {"type": "error", "error": {"type": kind, "message": "because"}}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnknownModelError("no model"), "not_found_error"),
        (QueueFullError("full"), "rate_limit_error"),
        (LoadFailedError("failed"), "overloaded_error"),
    ],
)
def test_the_daemons_own_errors_keep_their_code(error: SwapdError, kind: str) -> None:
    assert errors.of(error) == {"type": "error", "error": {"type": kind, "message": error.message, "code": error.code}}


def test_a_prompt_that_is_too_long_is_told_in_anthropics_words() -> None:
    envelope = {"error": {"message": "messages has 300 tokens", "n_prompt_tokens": 300, "n_ctx": 256}}
    error = json.loads(MessageAnswer().refusal(400, envelope))["error"]
    assert error["message"].startswith("prompt is too long: 300 tokens > 256 maximum")


def test_a_count_is_one_number() -> None:
    assert json.loads(CountAnswer().whole(b'{"object": "response.input_tokens", "input_tokens": 9}')) == {
        "input_tokens": 9
    }
    with pytest.raises(ValueError):
        CountAnswer().whole(b"{}")
