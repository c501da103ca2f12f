"""Clients of other dialects than chats against a daemon with real models: the official ones of Anthropic and OpenAI."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import anthropic
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel
from support.client_daemon import client_daemon
from support.running_daemon import RunningDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK = "What is the capital of France?"
TURNS: Any = [{"role": "user", "content": ASK}]
MESSAGE: Any = {"model": "smol", "max_tokens": 24, "extra_body": {"temperature": 0}}
"""Anthropic's newer clients have no parameter for the temperature."""
RESPONSE: Any = {"model": "smol", "max_output_tokens": 24, "temperature": 0}
MESSAGES_TOOL: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Paris"]}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}


class GetWeather(BaseModel):
    """The weather in a city."""

    city: Literal["Oslo", "Paris"]
    unit: Literal["celsius", "fahrenheit"]


class Verdict(BaseModel):
    animal: Literal["cat", "dog"]
    sure: bool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with client_daemon(tmp_path_factory.mktemp("daemon"), thinker=True) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def messages_client(daemon: RunningDaemon) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=daemon.url, api_key="none", max_retries=0) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: RunningDaemon) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="mine", max_retries=0) as one:
        yield one


async def test_a_streamed_message_adds_up_to_the_whole_one(messages_client: anthropic.AsyncAnthropic) -> None:
    whole = await messages_client.messages.create(messages=TURNS, system="Be brief.", **MESSAGE)
    text = ""
    async with messages_client.messages.stream(messages=TURNS, system="Be brief.", **MESSAGE) as stream:
        async for event in stream:
            if event.type == "text":
                text += event.text
                assert event.snapshot == text
        final = await stream.get_final_message()
    (block,) = final.content
    assert block.type == "text"
    assert [one.text for one in whole.content if one.type == "text"] == [block.text]
    assert block.text == text
    assert "Paris" in text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    read = [usage.input_tokens + (usage.cache_read_input_tokens or 0) for usage in (whole.usage, final.usage)]
    assert read[0] == read[1] > 0
    assert final.usage.cache_read_input_tokens, "the second request finds the prefix of the first"
    count = await messages_client.messages.count_tokens(model="smol", messages=TURNS, system="Be brief.")
    assert count.input_tokens == read[0]


async def test_a_message_ends_at_its_limit_or_at_a_stop_sequence(messages_client: anthropic.AsyncAnthropic) -> None:
    cut = await messages_client.messages.create(messages=TURNS, **{**MESSAGE, "max_tokens": 1})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 1)
    stopped = await messages_client.messages.create(messages=TURNS, stop_sequences=["Paris"], **MESSAGE)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    async with messages_client.messages.stream(messages=TURNS, stop_sequences=["Paris"], **MESSAGE) as stream:
        final = await stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "Paris")
    assert [block.type for block in final.content] == [block.type for block in stopped.content] == ["text"]


async def test_a_message_calls_a_tool_and_the_conversation_goes_on(messages_client: anthropic.AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    asked: Any = {**MESSAGE, "max_tokens": 100, "tools": [MESSAGES_TOOL]}
    choice: Any = {"type": "tool", "name": "get_weather"}
    told = ""
    async with messages_client.messages.stream(messages=messages, tool_choice=choice, **asked) as stream:
        async for event in stream:
            if event.type == "input_json":
                told += event.partial_json
        final = await stream.get_final_message()
    (call,) = final.content
    assert call.type == "tool_use"
    assert (final.stop_reason, call.name, set(call.input)) == ("tool_use", "get_weather", {"city", "unit"})
    assert told
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Snow, minus 3 degrees.", "is_error": False}
    messages += [{"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    answer = await messages_client.messages.create(
        messages=messages, tool_choice={"type": "none"}, **{**asked, "max_tokens": 24}
    )
    assert [block.type for block in answer.content] == ["text"]


async def test_thinking_streams_goes_back_and_can_be_left_out(messages_client: anthropic.AsyncAnthropic) -> None:
    asked: Any = {**MESSAGE, "model": "thinker", "max_tokens": 12}
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    told = ""
    async with messages_client.messages.stream(messages=TURNS, thinking=thinking, **asked) as stream:
        async for event in stream:
            if event.type == "thinking":
                told += event.thinking
        final = await stream.get_final_message()
    (block,) = final.content
    assert block.type == "thinking"
    assert block.thinking == told != ""
    assert block.signature
    assert final.usage.output_tokens_details is not None
    assert final.usage.output_tokens >= final.usage.output_tokens_details.thinking_tokens > 0
    again: Any = [
        *TURNS,
        {"role": "assistant", "content": [*final.content, {"type": "text", "text": "Paris."}]},
        *TURNS,
    ]
    counts = [
        (await messages_client.messages.count_tokens(model="thinker", messages=messages)).input_tokens
        for messages in (again, [*TURNS, {"role": "assistant", "content": "Paris."}, *TURNS])
    ]
    assert counts[0] >= counts[1] + 12, "the model reads what it thought"
    plain = await messages_client.messages.create(messages=TURNS, thinking={"type": "disabled"}, **asked)
    assert [block.type for block in plain.content] == ["text"]


async def test_a_message_is_parsed_into_a_pydantic_model(messages_client: anthropic.AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": "It purrs. Which animal is it?"}]
    answer = await messages_client.messages.parse(
        messages=messages, output_format=Verdict, **{**MESSAGE, "max_tokens": 100}
    )
    assert isinstance(answer.parsed_output, Verdict)


async def test_errors_of_messages_are_the_clients_own(messages_client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="did you mean 'smol'"):
        await messages_client.messages.create(messages=TURNS, **{**MESSAGE, "model": "smoll"})
    tool: Any = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        await messages_client.messages.create(messages=TURNS, tools=[tool], **MESSAGE)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
        await messages_client.messages.create(messages=[{"role": "user", "content": "word " * 3000}], **MESSAGE)
    with pytest.raises(anthropic.BadRequestError, match="does not serve"):
        await messages_client.messages.create(messages=TURNS, **{**MESSAGE, "model": "vectors"})


async def test_models_are_listed_for_anthropics_client(messages_client: anthropic.AsyncAnthropic) -> None:
    listed = [model async for model in messages_client.models.list()]
    assert [model.id for model in listed] == ["smol", "vectors", "thinker"]
    assert listed[0].display_name == "smol"
    assert (await messages_client.models.retrieve("smol")).type == "model"


async def test_a_streamed_response_adds_up_to_the_whole_one(client: openai.AsyncOpenAI) -> None:
    whole = await client.responses.create(input=ASK, instructions="Be brief.", **RESPONSE)
    text, numbers = "", []
    async with client.responses.stream(input=ASK, instructions="Be brief.", **RESPONSE) as stream:
        async for event in stream:
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                text += event.delta
                assert event.snapshot == text
        final = await stream.get_final_response()
    assert final.output_text == whole.output_text == text
    assert "Paris" in text
    assert numbers == list(range(len(numbers)))
    assert (final.status, final.instructions) == (whole.status, "Be brief.")
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.total_tokens == whole.usage.total_tokens > final.usage.input_tokens_details.cached_tokens > 0
    (item,) = final.output
    assert item.type == "message"


async def test_a_conversation_goes_on_from_stored_responses(client: openai.AsyncOpenAI, daemon: RunningDaemon) -> None:
    first = await client.responses.create(input=ASK, **RESPONSE)
    second = await client.responses.create(input="And of Norway?", previous_response_id=first.id, **RESPONSE)
    by_hand: Any = [
        {"role": "user", "content": ASK},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"role": "user", "content": "And of Norway?"},
    ]
    stateless = await client.responses.create(input=by_hand, store=False, **RESPONSE)
    assert stateless.output_text == second.output_text
    assert stateless.usage is not None
    assert second.usage is not None
    assert stateless.usage.input_tokens == second.usage.input_tokens
    assert (await client.responses.retrieve(second.id)).output_text == second.output_text
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="yours", max_retries=0) as other:
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(second.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            await other.responses.create(input="And?", previous_response_id=second.id, **RESPONSE)
    await client.responses.delete(second.id)
    for gone in (second.id, stateless.id):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(gone)


async def test_a_response_that_is_cut_off_is_incomplete(client: openai.AsyncOpenAI) -> None:
    cut = await client.responses.create(input=ASK, **{**RESPONSE, "max_output_tokens": 1})
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    kinds = [
        event.type
        async for event in await client.responses.create(input=ASK, stream=True, **{**RESPONSE, "max_output_tokens": 1})
    ]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"


async def test_reasoning_streams_as_an_item_and_can_be_left_out(client: openai.AsyncOpenAI) -> None:
    asked: Any = {**RESPONSE, "model": "thinker", "max_output_tokens": 16}
    told, last = "", None
    async for event in await client.responses.create(input=ASK, stream=True, **asked):
        if event.type == "response.reasoning_text.delta":
            told += event.delta
        last = event
    assert last is not None
    assert last.type in ("response.completed", "response.incomplete")
    (item,) = last.response.output
    assert item.type == "reasoning"
    assert item.content is not None
    assert item.content[0].text == told != ""
    usage = last.response.usage
    assert usage is not None
    assert usage.output_tokens >= usage.output_tokens_details.reasoning_tokens > 0
    plain = await client.responses.create(input=ASK, reasoning={"effort": "none"}, **asked)
    assert [item.type for item in plain.output] == ["message"]


async def test_a_response_calls_a_tool_and_the_conversation_goes_on(client: openai.AsyncOpenAI) -> None:
    chat_tool: Any = openai.pydantic_function_tool(GetWeather, name="get_weather")
    tool: Any = {"type": "function", **chat_tool["function"]}
    asked: Any = {**RESPONSE, "max_output_tokens": 100, "tools": [tool]}
    told = ""
    async with client.responses.stream(
        input="What is the weather in Oslo?", tool_choice={"type": "function", "name": "get_weather"}, **asked
    ) as stream:
        async for event in stream:
            if event.type == "response.function_call_arguments.delta":
                told += event.delta
        final = await stream.get_final_response()
    (call,) = final.output
    assert call.type == "function_call"
    assert call.arguments == told
    assert isinstance(GetWeather.model_validate_json(told), GetWeather)
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "Snow, minus 3 degrees."}]
    answer = await client.responses.create(
        input=output, previous_response_id=final.id, tool_choice="none", **{**asked, "max_output_tokens": 24}
    )
    assert answer.output_text


async def test_a_response_is_parsed_into_a_pydantic_model_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    asked: Any = {
        **RESPONSE,
        "max_output_tokens": 100,
        "input": "It purrs. Which animal is it?",
        "text_format": Verdict,
    }
    whole = await client.responses.parse(**asked)
    assert isinstance(whole.output_parsed, Verdict)
    async with client.responses.stream(**asked) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == whole.output_parsed
    assert json.loads(final.output_text) == whole.output_parsed.model_dump()


async def test_errors_of_responses_are_the_clients_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'smol'"):
        await client.responses.create(input=ASK, **{**RESPONSE, "model": "smoll"})
    with pytest.raises(openai.BadRequestError, match="web_search"):
        await client.responses.create(input=ASK, tools=[{"type": "web_search"}], **RESPONSE)
    with pytest.raises(openai.BadRequestError, match="usable context is 2048"):
        await client.responses.create(input="word " * 3000, **RESPONSE)
