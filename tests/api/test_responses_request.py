"""Requests of /v1/responses as chats."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swapd.api import openai
from swapd.api.responses.request import Shelf, read
from swapd.api.responses.store import Stored
from swapd.api.translation import Translated
from swapd.errors import BadRequestError

TOOL = {"type": "function", "name": "look", "description": "Look.", "parameters": {"type": "object"}, "strict": True}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}, "strict": True},
}
OTHER = {"type": "function", "name": "other"}
CALL = {"type": "function_call", "call_id": "c0", "name": "look", "arguments": '{"at": "x"}'}
CHAT_CALL = {"id": "c0", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
OUTPUT = {"type": "function_call_output", "call_id": "c0", "output": "found"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
HELLO = [{"role": "user", "content": "Hello"}]


def translated(shelf: dict[str, Stored] | None = None, **fields: Any) -> Translated:
    asked = {"model": "tiny", "input": "Hello", **fields}
    body = json.dumps({name: value for name, value in asked.items() if value is not None}).encode()
    stored = {} if shelf is None else shelf

    def keep(response_id: str, response: Stored) -> bool:
        stored[response_id] = response
        return True

    return read(body, response_id="resp_2", created_at=1, shelf=Shelf(find=stored.get, keep=keep))


def chat(shelf: dict[str, Stored] | None = None, **fields: Any) -> dict[str, Any]:
    """The chat that a request becomes, which our own check takes."""
    made = translated(shelf, **fields)
    openai.check(made.endpoint, made.fields)
    return made.fields


def test_a_plain_request_is_a_plain_chat() -> None:
    assert chat() == {"model": "tiny", "messages": HELLO}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param(
            [{"role": "developer", "content": "Be brief."}, {"type": "message", **HELLO[0]}],
            [{"role": "system", "content": "Be brief."}, *HELLO],
            id="a developer's message",
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, IMAGE]}],
            [{"role": "user", "content": [{"type": "text", "text": "What?"}, IMAGE_PART]}],
            id="an image",
        ),
        pytest.param(
            [
                {"role": "user", "content": "Hi"},
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "Hel", "annotations": []},
                        {"type": "refusal", "refusal": "lo"},
                    ],
                },
                *HELLO,
            ],
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *HELLO],
            id="an answer of before",
        ),
        pytest.param(
            [*HELLO, REASONING, CALL, {**CALL, "call_id": "c1"}, OUTPUT, {**OUTPUT, "call_id": "c1"}],
            [
                *HELLO,
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "Hm.",
                    "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c1"}],
                },
                {"role": "tool", "tool_call_id": "c0", "content": "found"},
                {"role": "tool", "tool_call_id": "c1", "content": "found"},
            ],
            id="what the assistant does in a row is one message",
        ),
        pytest.param(
            [
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": "b"},
                REASONING,
                {"role": "assistant", "content": "c"},
                CALL,
                OUTPUT,
            ],
            [
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "assistant", "content": "c", "reasoning_content": "Hm.", "tool_calls": [CHAT_CALL]},
                {"role": "tool", "tool_call_id": "c0", "content": "found"},
            ],
            id="what it says twice is two",
        ),
        pytest.param(
            [
                {**OUTPUT, "output": [{"type": "input_text", "text": "seen"}, IMAGE]},
                {**OUTPUT, "call_id": "c1"},
                {"role": "user", "content": "Well?"},
            ],
            [
                {"role": "tool", "tool_call_id": "c0", "content": "seen"},
                {"role": "tool", "tool_call_id": "c1", "content": "found"},
                {"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "Well?"}]},
            ],
            id="an image that a tool gave is shown by the user",
        ),
        pytest.param(
            [*HELLO, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}, CALL, OUTPUT],
            [
                *HELLO,
                {"role": "assistant", "content": None, "reasoning_content": "s", "tool_calls": [CHAT_CALL]},
                {"role": "tool", "tool_call_id": "c0", "content": "found"},
            ],
            id="a summary stands for reasoning that is not there",
        ),
        pytest.param([*HELLO, REASONING], HELLO, id="reasoning without an answer is nothing"),
        pytest.param(
            [*HELLO, {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"}, CALL, OUTPUT],
            [
                *HELLO,
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
                {"role": "tool", "tool_call_id": "c0", "content": "found"},
            ],
            id="reasoning that is only there encrypted is left out",
        ),
    ],
)
def test_items_are_carried(items: list[Any], expected: list[Any]) -> None:
    assert chat(input=items)["messages"] == expected


def test_instructions_and_what_the_system_says_first_are_one_message() -> None:
    items = [{"role": "developer", "content": "b"}, *HELLO]
    assert chat(instructions="a", input=items)["messages"] == [{"role": "system", "content": "a\n\nb"}, *HELLO]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"max_output_tokens": 9, "temperature": 0.5}, {"max_completion_tokens": 9, "temperature": 0.5}),
        ({"reasoning": {"effort": "minimal", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": "none"}}, {"reasoning_effort": "none"}),
        ({"top_k": 20, "seed": 1}, {"top_k": 20, "seed": 1}),
        ({"safety_identifier": "me", "metadata": {"a": "b"}, "truncation": "disabled"}, {"user": "me"}),
        ({"include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "service_tier": "auto"}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"tools": [TOOL], "parallel_tool_calls": False}, {"tools": [CHAT_TOOL], "parallel_tool_calls": False}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [CHAT_TOOL], "tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "look"}},
            {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
        ),
        (
            {"tools": [OTHER, TOOL], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [TOOL]}},
            {"tools": [CHAT_TOOL], "tool_choice": "required"},
        ),
    ],
)
def test_fields_are_carried(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: value for name, value in chat(**fields).items() if name not in ("model", "messages")} == expected


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"input": None}, "input", "required"),
        ({"input": []}, "input", "length"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "'web_search_call'"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "expected user"),
        ({"input": [{"role": "user"}]}, "input[0].content", "required"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
            "'input_file'",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
            "required",
        ),
        ({"input": [*HELLO, {"type": "function_call", "name": "f"}]}, "input[1].call_id", "required"),
        ({"input": [{"type": "item_reference", "id": "msg_9_0"}]}, "input[0].id", "'msg_9_0'"),
        ({"input": [{"id": "msg_9_0"}]}, "input[0].id", "'msg_9_0'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [TOOL, {"type": "custom", "name": "x"}]}, "tools[1].type", "'custom'"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "required"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "'file_search'"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "required"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"background": True}, "background", "no such thing"),
        ({"conversation": "conv_1"}, "conversation", "no such thing"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"top_logprobs": 3}, "top_logprobs", "/v1/chat/completions"),
        ({"include": ["message.output_text.logprobs"]}, "include", "/v1/chat/completions"),
        ({"messages": HELLO}, "messages", "/v1/responses"),
        ({"previous_response_id": "resp_9"}, "previous_response_id", "'resp_9' not found"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(fields: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        translated(**fields)
    assert raised.value.param == param
    assert word in raised.value.message


def stored() -> dict[str, Stored]:
    """A shelf with one response, of which the instructions are gone."""
    output = [
        {"type": "message", "id": "msg_1_0", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]}
    ]
    return {"resp_1": Stored(json.dumps({"output": output}).encode(), json.dumps(HELLO).encode())}


def test_a_request_goes_on_from_a_stored_response_but_not_from_its_instructions() -> None:
    fields = chat(stored(), previous_response_id="resp_1", input="And?", instructions="Be brief.")
    assert fields["messages"] == [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And?"},
    ]


def test_a_fault_in_the_new_items_is_named_by_their_own_places() -> None:
    with pytest.raises(BadRequestError) as raised:
        translated(stored(), previous_response_id="resp_1", input=[*HELLO, {"type": "computer_call"}])
    assert raised.value.param == "input[1].type"


def test_an_item_is_referred_to_by_its_id() -> None:
    items = [*HELLO, {"type": "item_reference", "id": "msg_1_0"}, {"role": "user", "content": "And?"}]
    assert chat(stored(), input=items)["messages"][1] == {"role": "assistant", "content": "Hi."}
