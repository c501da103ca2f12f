"""The official OpenAI client's responses against a daemon with a real model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel
from support.client_daemon import client_daemon
from support.running_daemon import RunningDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK = "What is the capital of France?"
SHORT: Any = {"model": "smol", "max_output_tokens": 24, "temperature": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with client_daemon(tmp_path_factory.mktemp("daemon"), thinker=True) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: RunningDaemon) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="mine", max_retries=0) as one:
        yield one


async def test_the_stream_helper_adds_up_to_the_whole_response(client: openai.AsyncOpenAI) -> None:
    whole = await client.responses.create(input=ASK, instructions="Be brief.", **SHORT)
    text, numbers = "", []
    async with client.responses.stream(input=ASK, instructions="Be brief.", **SHORT) as stream:
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
    first = await client.responses.create(input=ASK, **SHORT)
    second = await client.responses.create(input="And of Norway?", previous_response_id=first.id, **SHORT)
    by_hand: Any = [
        {"role": "user", "content": ASK},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"role": "user", "content": "And of Norway?"},
    ]
    stateless = await client.responses.create(input=by_hand, store=False, **SHORT)
    assert stateless.output_text == second.output_text
    assert stateless.usage is not None
    assert second.usage is not None
    assert stateless.usage.input_tokens == second.usage.input_tokens
    assert (await client.responses.retrieve(second.id)).output_text == second.output_text
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="yours", max_retries=0) as other:
        with pytest.raises(openai.NotFoundError):
            await other.responses.retrieve(second.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            await other.responses.create(input="And?", previous_response_id=second.id, **SHORT)
    await client.responses.delete(second.id)
    for gone in (second.id, stateless.id):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(gone)


async def test_a_response_that_is_cut_off_is_incomplete(client: openai.AsyncOpenAI) -> None:
    cut = await client.responses.create(input=ASK, **{**SHORT, "max_output_tokens": 1})
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    kinds = [
        event.type
        async for event in await client.responses.create(input=ASK, stream=True, **{**SHORT, "max_output_tokens": 1})
    ]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"


async def test_reasoning_streams_as_an_item_and_can_be_left_out(client: openai.AsyncOpenAI) -> None:
    asked: Any = {**SHORT, "model": "thinker", "max_output_tokens": 16}
    told, last = "", None
    async for event in await client.responses.create(input=ASK, stream=True, **asked):
        if event.type == "response.reasoning_text.delta":
            told += event.delta
        last = event
    assert last is not None
    assert last.type == "response.incomplete"
    (item,) = last.response.output
    assert item.type == "reasoning"
    assert item.content is not None
    assert item.content[0].text == told != ""
    plain = await client.responses.create(input=ASK, reasoning={"effort": "none"}, **asked)
    assert [item.type for item in plain.output] == ["message"]


class GetWeather(BaseModel):
    """The weather in a city."""

    city: Literal["Oslo", "Paris"]
    unit: Literal["celsius", "fahrenheit"]


class Verdict(BaseModel):
    animal: Literal["cat", "dog"]
    sure: bool


async def test_a_forced_call_streams_and_the_conversation_goes_on(client: openai.AsyncOpenAI) -> None:
    chat_tool: Any = openai.pydantic_function_tool(GetWeather, name="get_weather")
    tool: Any = {"type": "function", **chat_tool["function"]}
    asked: Any = {**SHORT, "max_output_tokens": 100, "tools": [tool]}
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


async def test_an_answer_is_parsed_into_a_pydantic_model_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    asked: Any = {**SHORT, "max_output_tokens": 100, "input": "It purrs. Which animal is it?", "text_format": Verdict}
    whole = await client.responses.parse(**asked)
    assert isinstance(whole.output_parsed, Verdict)
    async with client.responses.stream(**asked) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == whole.output_parsed
    assert json.loads(final.output_text) == whole.output_parsed.model_dump()


async def test_errors_are_the_clients_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'smol'"):
        await client.responses.create(input=ASK, **{**SHORT, "model": "smoll"})
    with pytest.raises(openai.BadRequestError, match="web_search"):
        await client.responses.create(input=ASK, tools=[{"type": "web_search"}], **SHORT)
    with pytest.raises(openai.BadRequestError, match="usable context is 2048"):
        await client.responses.create(input="word " * 3000, **SHORT)
