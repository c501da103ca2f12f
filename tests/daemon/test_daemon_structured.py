"""Structured output of a real model, asked by the official OpenAI client through the whole daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel, Field
from support.client_daemon import client_daemon

ASK: Any = [{"role": "user", "content": "Ada Lovelace was 36 years old and lived in London. Describe her."}]
COOL: Any = {"model": "smol", "temperature": 0, "max_tokens": 160}


class City(StrEnum):
    LONDON = "London"
    PARIS = "Paris"


class Job(BaseModel):
    title: str = Field(max_length=12)
    remote: bool


class Pause(BaseModel):
    kind: Literal["pause"]
    weeks: int = Field(ge=1, le=52)


class Work(BaseModel):
    kind: Literal["work"]
    job: Job


class Person(BaseModel):
    name: str = Field(max_length=16, pattern="^[A-Z][a-z ]+$")
    age: int = Field(ge=0, le=120)
    city: City
    now: Pause | Work = Field(discriminator="kind")
    nickname: str | None = Field(max_length=10)


class GetWeather(BaseModel):
    """The weather in a city."""

    city: City
    days: int = Field(ge=1, le=7)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_daemon(tmp_path) as daemon:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as one:
            yield one


async def test_answers_are_parsed_into_the_model_that_was_asked_for(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(messages=ASK, response_format=Person, **COOL)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    person = choice.message.parsed
    assert isinstance(person, Person)
    warm: Any = {**COOL, "temperature": 1.2, "n": 2, "seed": 3}
    several = await client.chat.completions.parse(messages=ASK, response_format=Person, **warm)
    for choice in several.choices:
        assert choice.finish_reason == "length" or isinstance(choice.message.parsed, Person)


async def test_a_stream_is_parsed_when_it_ends(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(messages=ASK, response_format=Person, **COOL) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)
    assert {"content.delta", "content.done"} <= kinds


async def test_forced_calls_stream_and_parse(client: openai.AsyncOpenAI) -> None:
    tools: Any = [pydantic_function_tool(GetWeather, name="get_weather")]
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        asked: Any = {**COOL, "messages": ASK, "tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
        async with client.chat.completions.stream(**asked) as stream:
            names = [event.name async for event in stream if event.type == "tool_calls.function.arguments.done"]
            final = await stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls or ()
        assert names == [call.function.name] == ["get_weather"]
        assert isinstance(call.function.parsed_arguments, GetWeather)
        assert final.choices[0].finish_reason == "tool_calls"
        whole = await client.chat.completions.create(**asked)
        (same,) = whole.choices[0].message.tool_calls or ()
        assert json.loads(same.function.arguments) == json.loads(call.function.arguments)


async def test_llama_cpps_own_fields_work_in_chats_and_completions(client: openai.AsyncOpenAI) -> None:
    own: Any = {**COOL, "extra_body": {"grammar": 'root ::= ("yes" | "no") "."'}}
    chat = await client.chat.completions.create(messages=ASK, **own)
    assert chat.choices[0].message.content in ("yes.", "no.")
    text = await client.completions.create(prompt="Is it?", **own)
    assert text.choices[0].text in ("yes.", "no.")
    schema: Any = {**COOL, "extra_body": {"json_schema": {"enum": [1, "two", None]}}}
    completion = await client.completions.create(prompt="A number:", **schema)
    assert json.loads(completion.choices[0].text) in (1, "two", None)


async def test_what_cannot_be_enforced_is_a_bad_request_and_the_model_serves_on(client: openai.AsyncOpenAI) -> None:
    unsupported: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "array", "items": {}, "uniqueItems": True}},
    }
    deep: Any = {
        "$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1500)},
        "$ref": "#/$defs/d0",
    }
    for wrong in (unsupported, {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(messages=ASK, response_format=wrong, **COOL)
        assert refused.value.param is not None
        assert refused.value.param.startswith("response_format.json_schema.schema")
    answer = await client.chat.completions.create(messages=ASK, response_format={"type": "json_object"}, **COOL)
    assert (answer.choices[0].message.content or "").startswith("{")
