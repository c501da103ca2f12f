"""The official Anthropic client against a daemon with a real model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import anthropic
import pytest
import pytest_asyncio
from pydantic import BaseModel
from support.client_daemon import client_daemon
from support.running_daemon import RunningDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]
SHORT: Any = {"model": "smol", "max_tokens": 24, "temperature": 0}
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Paris"]}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with client_daemon(tmp_path_factory.mktemp("daemon"), thinker=True) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: RunningDaemon) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=daemon.url, api_key="none", max_retries=0) as one:
        yield one


async def test_the_stream_helper_adds_up_to_the_whole_message(client: anthropic.AsyncAnthropic) -> None:
    whole = await client.messages.create(messages=ASK, system="Be brief.", **SHORT)
    text = ""
    async with client.messages.stream(messages=ASK, system="Be brief.", **SHORT) as stream:
        async for event in stream:
            if event.type == "text":
                text += event.text
                assert event.snapshot == text
        final = await stream.get_final_message()
    (block,) = final.content
    assert block.type == "text"
    assert whole.content == final.content
    assert block.text == text
    assert "Paris" in text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    read = [usage.input_tokens + (usage.cache_read_input_tokens or 0) for usage in (whole.usage, final.usage)]
    assert read[0] == read[1] > 0
    assert final.usage.cache_read_input_tokens, "the second request finds the prefix of the first"
    count = await client.messages.count_tokens(model="smol", messages=ASK, system="Be brief.")
    assert count.input_tokens == read[0]


async def test_a_message_ends_at_its_limit_or_at_a_stop_sequence(client: anthropic.AsyncAnthropic) -> None:
    cut = await client.messages.create(messages=ASK, **{**SHORT, "max_tokens": 1})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 1)
    stopped = await client.messages.create(messages=ASK, stop_sequences=["Paris"], **SHORT)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    async with client.messages.stream(messages=ASK, stop_sequences=["Paris"], **SHORT) as stream:
        final = await stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "Paris")
    assert final.content == stopped.content


async def test_a_forced_call_streams_and_the_conversation_goes_on(client: anthropic.AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    asked: Any = {**SHORT, "max_tokens": 100, "tools": [TOOL]}
    choice: Any = {"type": "tool", "name": "get_weather"}
    told = ""
    async with client.messages.stream(messages=messages, tool_choice=choice, **asked) as stream:
        async for event in stream:
            if event.type == "input_json":
                told += event.partial_json
        final = await stream.get_final_message()
    (call,) = final.content
    assert call.type == "tool_use"
    assert (final.stop_reason, call.name, set(call.input)) == ("tool_use", "get_weather", {"city", "unit"})
    assert told
    whole = await client.messages.create(messages=messages, tool_choice=choice, **asked)
    assert whole.content[0].type == "tool_use"
    assert whole.content[0].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Snow, minus 3 degrees.", "is_error": False}
    messages += [{"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    answer = await client.messages.create(
        messages=messages, tool_choice={"type": "none"}, **{**asked, "max_tokens": 24}
    )
    assert [block.type for block in answer.content] == ["text"]


async def test_thinking_streams_goes_back_and_can_be_left_out(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = {**SHORT, "model": "thinker", "max_tokens": 12}
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    told = ""
    async with client.messages.stream(messages=ASK, thinking=thinking, **asked) as stream:
        async for event in stream:
            if event.type == "thinking":
                told += event.thinking
        final = await stream.get_final_message()
    (block,) = final.content
    assert block.type == "thinking"
    assert block.thinking == told != ""
    assert block.signature
    again: Any = [*ASK, {"role": "assistant", "content": [*final.content, {"type": "text", "text": "Paris."}]}, *ASK]
    counts = [
        (await client.messages.count_tokens(model="thinker", messages=messages)).input_tokens
        for messages in (again, [*ASK, {"role": "assistant", "content": "Paris."}, *ASK])
    ]
    assert counts[0] >= counts[1] + 12, "the model reads what it thought"
    plain = await client.messages.create(messages=ASK, thinking={"type": "disabled"}, **asked)
    assert [block.type for block in plain.content] == ["text"]


class Verdict(BaseModel):
    animal: Literal["cat", "dog"]
    sure: bool


async def test_an_answer_is_parsed_into_a_pydantic_model(client: anthropic.AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": "It purrs. Which animal is it?"}]
    answer = await client.messages.parse(messages=messages, output_format=Verdict, **{**SHORT, "max_tokens": 100})
    assert isinstance(answer.parsed_output, Verdict)


async def test_errors_are_the_clients_own(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="did you mean 'smol'"):
        await client.messages.create(messages=ASK, **{**SHORT, "model": "smoll"})
    tool: Any = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        await client.messages.create(messages=ASK, tools=[tool], **SHORT)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
        await client.messages.create(messages=[{"role": "user", "content": "word " * 3000}], **SHORT)
    with pytest.raises(anthropic.BadRequestError, match="does not serve"):
        await client.messages.create(messages=ASK, **{**SHORT, "model": "vectors"})


async def test_models_are_listed_for_it(client: anthropic.AsyncAnthropic) -> None:
    listed = [model async for model in client.models.list()]
    assert [model.id for model in listed] == ["smol", "vectors", "thinker"]
    assert listed[0].display_name == "smol"
    assert (await client.models.retrieve("smol")).type == "model"
