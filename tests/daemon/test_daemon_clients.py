"""The helpers of the official OpenAI client against a daemon with real models."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel
from support.client_daemon import client_daemon
from support.running_daemon import RunningDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]
SHORT: Any = {"model": "smol", "max_tokens": 24, "temperature": 0}
TEXTS = ["a red fox", "bread and butter", "日本語"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with client_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: RunningDaemon) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as one:
        yield one


async def test_the_stream_helper_adds_up_to_the_whole_answer(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(messages=ASK, **SHORT)
    kinds, text = [], ""
    async with client.chat.completions.stream(messages=ASK, stream_options={"include_usage": True}, **SHORT) as stream:
        async for event in stream:
            kinds.append(event.type)
            if event.type == "content.delta":
                text += event.delta
                assert event.snapshot == text
        final = await stream.get_final_completion()
    (choice,) = final.choices
    assert choice.message.content == text == whole.choices[0].message.content
    assert choice.finish_reason == whole.choices[0].finish_reason
    assert "Paris" in text
    assert "content.done" in kinds
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens
    assert final.id.startswith("chatcmpl-")


async def test_raw_and_streamed_responses_carry_the_request_id(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        messages=ASK, extra_headers={"X-Request-Id": "mine-1"}, **SHORT
    )
    answer = raw.parse()
    assert raw.headers["x-request-id"] == "mine-1"
    assert answer.id == "chatcmpl-mine-1"
    async with client.chat.completions.with_streaming_response.create(messages=ASK, stream=True, **SHORT) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


async def test_embeddings_are_the_same_as_floats_and_in_base64(client: openai.AsyncOpenAI) -> None:
    floats = await client.embeddings.create(model="vectors", input=TEXTS, encoding_format="float")
    asked_for = await client.embeddings.create(model="vectors", input=TEXTS, encoding_format="base64")
    by_default = await client.embeddings.create(model="vectors", input=TEXTS)
    assert len(floats.data) == 3
    for index, item in enumerate(floats.data):
        assert item.index == index
        packed: Any = asked_for.data[index].embedding
        raw = base64.b64decode(packed)
        unpacked = struct.unpack(f"<{len(raw) // 4}f", raw)
        assert unpacked == pytest.approx(item.embedding, abs=1e-7)
        # What the client asks for by itself is base64, and it unpacks that.
        assert by_default.data[index].embedding == pytest.approx(item.embedding, abs=1e-7)
        assert sum(value * value for value in unpacked) == pytest.approx(1, abs=1e-5)
    assert by_default.usage.prompt_tokens == floats.usage.prompt_tokens > 0


async def test_models_are_listed_and_found_by_the_client(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == ["smol", "vectors"]
    assert (await client.models.retrieve("smol")).id == "smol"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")


async def test_a_text_completion_streams_several_choices_of_several_prompts(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "smol", "prompt": ["One, two,", "Red, green,"], "n": 2, "max_tokens": 6, "temperature": 0}
    whole = await client.completions.create(**asked)
    texts = dict.fromkeys(range(4), "")
    async for chunk in await client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == list(texts.values())
    assert texts[0] == texts[1] != texts[2] == texts[3]


class GetWeather(BaseModel):
    """The weather in a city."""

    city: Literal["Oslo", "Paris"]
    unit: Literal["celsius", "fahrenheit"]


class Verdict(BaseModel):
    animal: Literal["cat", "dog"]
    sure: bool


TOOL: Any = openai.pydantic_function_tool(GetWeather, name="get_weather")


async def test_a_forced_call_streams_and_is_parsed_and_the_conversation_goes_on(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    told, done = "", None
    asked: Any = {"model": "smol", "tools": [TOOL], "tool_choice": "required", "max_tokens": 100, "temperature": 0}
    async with client.chat.completions.stream(messages=messages, **asked) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                told += event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                done = event
        (choice,) = (await stream.get_final_completion()).choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, GetWeather)
    assert done is not None
    assert (done.name, done.parsed_arguments) == ("get_weather", calls[-1].function.parsed_arguments)
    assert told == "".join(call.function.arguments for call in calls)
    messages.append(choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "Snow, minus 3 degrees."} for call in calls]
    answer = await client.chat.completions.create(messages=messages, tools=[TOOL], tool_choice="none", **SHORT)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


async def test_a_named_tool_is_called_once_and_parsed(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="smol",
        messages=ASK,
        tools=[TOOL, openai.pydantic_function_tool(Verdict, name="judge")],
        tool_choice={"type": "function", "function": {"name": "judge"}},
        max_tokens=100,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name == "judge"
    assert isinstance(call.function.parsed_arguments, Verdict)


async def test_an_answer_is_parsed_into_a_pydantic_model_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "It purrs. Which animal is it?"}]
    asked: Any = {
        "model": "smol",
        "messages": messages,
        "response_format": Verdict,
        "max_tokens": 100,
        "temperature": 0,
    }
    whole = (await client.chat.completions.parse(**asked)).choices[0].message
    assert isinstance(whole.parsed, Verdict)
    async with client.chat.completions.stream(**asked) as stream:
        parsed = [event.parsed async for event in stream if event.type == "content.delta"]
        streamed = (await stream.get_final_completion()).choices[0].message
    assert streamed.parsed == whole.parsed
    assert parsed[-1] == whole.parsed.model_dump()
