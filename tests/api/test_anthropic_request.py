"""Anthropic's requests as chats."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swapd.api import openai
from swapd.api.anthropic.request import read, read_count
from swapd.errors import BadRequestError

PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PIXEL_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}
USE = {"type": "tool_use", "id": "c0", "name": "look", "input": {"at": "x"}}


def body(**fields: Any) -> bytes:
    asked = {"model": "tiny", "max_tokens": 9, "messages": HELLO, **fields}
    return json.dumps({name: value for name, value in asked.items() if value is not None}).encode()


def chat(**fields: Any) -> dict[str, Any]:
    """The chat that a request becomes, which our own check takes."""
    translated = read(body(**fields))
    openai.check(translated.endpoint, translated.fields)
    return translated.fields


def test_a_plain_request_is_a_plain_chat() -> None:
    assert chat() == {"model": "tiny", "max_tokens": 9, "messages": HELLO}


def test_a_stream_is_asked_for_its_usage() -> None:
    assert chat(stream=True)["stream_options"] == {"include_usage": True}
    assert "stream" not in chat(stream=False)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param(
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [{"role": "user", "content": "a\nb"}],
            id="texts are one",
        ),
        pytest.param(
            [{"role": "user", "content": [PIXEL, {"type": "text", "text": "What?"}]}],
            [{"role": "user", "content": [PIXEL_PART, {"type": "text", "text": "What?"}]}],
            id="an image",
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "d"}}]}],
            [{"role": "user", "content": "d"}],
            id="a document in plain text",
        ),
        pytest.param(
            [
                *HELLO,
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "I"}, {"type": "text", "text": "'ll look."}, USE],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c0", "content": "found"},
                        {"type": "text", "text": "Well?"},
                    ],
                },
            ],
            [
                *HELLO,
                {
                    "role": "assistant",
                    "content": "I'll look.",
                    "tool_calls": [
                        {"id": "c0", "type": "function", "function": {"name": "look", "arguments": '{"at":"x"}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c0", "content": "found"},
                {"role": "user", "content": "Well?"},
            ],
            id="a call and its result",
        ),
        pytest.param(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c0", "is_error": True, "content": "no such file"},
                        {"type": "tool_result", "tool_use_id": "c1", "is_error": True},
                        {
                            "type": "tool_result",
                            "tool_use_id": "c2",
                            "content": [{"type": "text", "text": "seen"}, PIXEL],
                        },
                    ],
                }
            ],
            [
                {"role": "tool", "tool_call_id": "c0", "content": "Error: no such file"},
                {"role": "tool", "tool_call_id": "c1", "content": "Error"},
                {"role": "tool", "tool_call_id": "c2", "content": "seen"},
                {"role": "user", "content": [PIXEL_PART]},
            ],
            id="results that failed, and one with an image",
        ),
        pytest.param(
            [
                *HELLO,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        USE,
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c0"}]},
            ],
            [
                *HELLO,
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "Hm.",
                    "tool_calls": [
                        {"id": "c0", "type": "function", "function": {"name": "look", "arguments": '{"at":"x"}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c0", "content": ""},
            ],
            id="thinking goes back as reasoning",
        ),
    ],
)
def test_messages_are_carried(messages: list[Any], expected: list[Any]) -> None:
    assert chat(messages=messages)["messages"] == expected


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("Be brief.", "Be brief."),
        (
            [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
            "a\nb",
        ),
        ([{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, {"type": "text", "text": "b"}], "b"),
        ("x-anthropic-billing-header: cch=1;\nBe brief.", "Be brief."),
    ],
)
def test_the_system_prompt_is_the_first_message(system: Any, expected: str) -> None:
    assert chat(system=system)["messages"] == [{"role": "system", "content": expected}, *HELLO]


def test_system_messages_at_the_beginning_are_one() -> None:
    turns = [{"role": "system", "content": "b"}, *HELLO, {"role": "system", "content": "c"}]
    assert chat(system="a", messages=turns)["messages"] == [
        {"role": "system", "content": "a\n\nb"},
        *HELLO,
        {"role": "system", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop_sequences": ["END"]}, {"stop": ["END"]}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 40}, {"temperature": 0.5, "top_p": 0.9, "top_k": 40}),
        ({"metadata": {"user_id": "me"}}, {"user": "me"}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"chat_template_kwargs": {"enable_thinking": True}}),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"a": 1}},
            {"chat_template_kwargs": {"a": 1, "enable_thinking": False}},
        ),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
        (
            {"output_format": {"type": "json_schema", "schema": {}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {}, "strict": True},
                }
            },
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "look", "description": "Look.", "parameters": TOOL["input_schema"]},
                    }
                ],
                "tool_choice": "auto",
                "parallel_tool_calls": False,
            },
        ),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "look"}},
            {"tool_choice": {"type": "function", "function": {"name": "look"}}},
        ),
        ({"service_tier": "auto", "context_management": {"edits": []}, "cache_control": {"type": "ephemeral"}}, {}),
    ],
)
def test_fields_are_carried(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    made = chat(**fields)
    assert {name: value for name, value in made.items() if name not in ("model", "max_tokens", "messages")} == expected


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"max_tokens": None}, "max_tokens", "required"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"messages": []}, "messages", "length"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "tool"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", "'video'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            "messages[0].content[0].source.type",
            "base64",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            "messages[0].content[0].source.type",
            "type text",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
            "messages[0].content[0].type",
            "'server_tool_use'",
        ),
        ({"system": [PIXEL]}, "system[0].type", "system prompt"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]", "'web_search_20250305'"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]", "'bash_20250124'"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name", "required"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name", "required"),
        ({"temperature": 1.5}, "temperature", "<= 1"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "no such thing"),
        ({"n": 2}, "n", "/v1/messages"),
        ({"logprobs": True}, "logprobs", "/v1/messages"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(fields: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        read(body(**fields))
    assert raised.value.param == param
    assert word in raised.value.message


def test_a_count_needs_no_max_tokens() -> None:
    translated = read_count(body(max_tokens=None, system="Be brief.", tools=[TOOL]))
    assert translated.endpoint is openai.Endpoint.CHAT_INPUT_TOKENS
    openai.check(translated.endpoint, translated.fields)
    assert translated.fields["messages"][0] == {"role": "system", "content": "Be brief."}
    assert len(translated.fields["tools"]) == 1
