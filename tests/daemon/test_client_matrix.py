"""The official clients of OpenAI, Anthropic and Ollama hold the same conversation with every backend of one daemon.

Between a client and a model there is nothing of ours but the daemon: the embedded worker and llama-server run real
models, the one elsewhere is a second daemon's, and the command's program answers by rule.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import aiohttp
import anthropic
import ollama
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel
from support.every_backend import BACKENDS, every_backend
from support.llama_server_binary import llama_server
from support.running_daemon import RunningDaemon

ASK = "What is the capital of France?"
TURNS: Any = [{"role": "user", "content": ASK}]
SHORT: Any = {"max_tokens": 12, "temperature": 0}
LONG = "word " * 2500
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
WEATHER = f"Write exactly this and nothing else: {CALL}"
"""The model is small, and llama-server lets it talk before a call that it must make: it is told so in so many words."""
SNOW = "Snow, minus 3 degrees."
PURRS: Any = [{"role": "user", "content": "It purrs. Which animal is it?"}]


class Verdict(BaseModel):
    animal: Literal["cat", "dog"]


PARAMETERS: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": PARAMETERS}}
MESSAGES_TOOL: Any = {"name": "get_weather", "input_schema": PARAMETERS}
OLLAMA_TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}


def check_arguments(arguments: Any) -> None:
    assert arguments.keys() == {"city"}
    assert arguments["city"] in ("Oslo", "Paris")


needs_llama_server = pytest.mark.skipif(llama_server().path is None, reason=llama_server().why_not)
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize(
        "model", [pytest.param(one, marks=needs_llama_server) if one == "llama-server" else one for one in BACKENDS]
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with every_backend(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: RunningDaemon) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def messages_client(daemon: RunningDaemon) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=daemon.url, api_key="none", max_retries=0) as one:
        yield one


async def test_openai_streams_and_goes_on(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.chat.completions.create(model=model, messages=TURNS, **SHORT)
    text, usage = "", None
    async with client.chat.completions.stream(
        model=model, messages=TURNS, stream_options={"include_usage": True}, **SHORT
    ) as stream:
        async for event in stream:
            if event.type == "content.delta":
                text += event.delta
        final = await stream.get_final_completion()
        usage = final.usage
    assert "Paris" in text
    assert whole.choices[0].message.content == final.choices[0].message.content == text
    assert whole.choices[0].finish_reason == final.choices[0].finish_reason
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens > 0
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 0
    cut = await client.chat.completions.create(model=model, messages=TURNS, **{**SHORT, "max_tokens": 2})
    assert cut.choices[0].finish_reason == "length"
    stopped = await client.chat.completions.create(model=model, messages=TURNS, stop=["Paris"], **SHORT)
    assert stopped.choices[0].finish_reason == "stop"
    assert "Paris" not in (stopped.choices[0].message.content or "")


async def test_openai_calls_a_tool_and_answers_by_a_schema(client: openai.AsyncOpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": WEATHER}]
    asked: Any = {"model": model, "tools": [CHAT_TOOL], "temperature": 0}
    told = ""
    async with client.chat.completions.stream(
        messages=messages, tool_choice="required", max_tokens=60, **asked
    ) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                told += event.arguments_delta
        (choice,) = (await stream.get_final_completion()).choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert calls
    check_arguments(calls[0].function.parsed_arguments)
    assert told == "".join(call.function.arguments for call in calls)
    messages.append(choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
    messages += [{"role": "tool", "tool_call_id": call.id, "content": SNOW} for call in calls]
    answer = await client.chat.completions.create(messages=messages, tool_choice="none", max_tokens=4, **asked)
    assert answer.choices[0].message.content
    parsed = await client.chat.completions.parse(
        model=model, messages=PURRS, response_format=Verdict, max_tokens=60, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Verdict)


async def test_openai_gets_embeddings(client: openai.AsyncOpenAI, model: str) -> None:
    texts = ["a red fox", "bread and butter"]
    packed = await client.embeddings.create(model=f"{model}-vectors", input=texts)
    floats = await client.embeddings.create(model=f"{model}-vectors", input=texts, encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert packed.usage.prompt_tokens > 0


async def test_openai_has_a_response_that_goes_on_from_another(client: openai.AsyncOpenAI, model: str) -> None:
    asked: Any = {"model": model, "max_output_tokens": 12, "temperature": 0}
    async with client.responses.stream(input=ASK, **asked) as stream:
        kinds = [event.type async for event in stream]
        first = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == ("response.completed" if first.status == "completed" else "response.incomplete")
    assert "Paris" in first.output_text
    second = await client.responses.create(input="And of Norway?", previous_response_id=first.id, **asked)
    assert second.output_text


async def test_openais_errors(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match=f"did you mean '{model}"):
        await client.chat.completions.create(model=f"{model}x", messages=TURNS, **SHORT)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await client.chat.completions.create(model=model, messages=TURNS, extra_body={"temperature": "hot"})
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": LONG}], **SHORT)
    body: Any = caught.value.body
    assert body["n_prompt_tokens"] > body["n_ctx"] == 2048
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="does not serve"):
            await client.chat.completions.create(model=f"{model}-vectors", messages=TURNS, stream=stream, **SHORT)


async def test_anthropic_streams_and_counts(messages_client: anthropic.AsyncAnthropic, model: str) -> None:
    asked: Any = {"model": model, "messages": TURNS, "max_tokens": 12, "extra_body": {"temperature": 0}}
    whole = await messages_client.messages.create(system="Be brief.", **asked)
    kinds, text = [], ""
    async with messages_client.messages.stream(system="Be brief.", **asked) as stream:
        async for event in stream:
            kinds.append(event.type)
            if event.type == "text":
                text += event.text
        final = await stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert "Paris" in text
    assert [one.text for message in (whole, final) for one in message.content if one.type == "text"] == [text, text]
    assert whole.stop_reason == final.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    read = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    count = await messages_client.messages.count_tokens(model=model, messages=TURNS, system="Be brief.")
    assert count.input_tokens == read > 0


async def test_anthropic_calls_a_tool_and_answers_by_a_schema(
    messages_client: anthropic.AsyncAnthropic, model: str
) -> None:
    messages: Any = [{"role": "user", "content": WEATHER}]
    asked: Any = {"model": model, "tools": [MESSAGES_TOOL], "extra_body": {"temperature": 0}}
    choice: Any = {"type": "tool", "name": "get_weather"}
    told = ""
    async with messages_client.messages.stream(messages=messages, tool_choice=choice, max_tokens=60, **asked) as stream:
        async for event in stream:
            if event.type == "input_json":
                told += event.partial_json
        final = await stream.get_final_message()
    (call,) = (block for block in final.content if block.type == "tool_use")
    assert (final.stop_reason, call.name) == ("tool_use", "get_weather")
    check_arguments(call.input)
    assert json.loads(told) == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": SNOW}
    messages += [{"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    answer = await messages_client.messages.create(
        messages=messages, tool_choice={"type": "none"}, max_tokens=4, **asked
    )
    assert [block.type for block in answer.content] == ["text"]
    parsed = await messages_client.messages.parse(
        model=model, messages=PURRS, output_format=Verdict, max_tokens=60, extra_body={"temperature": 0}
    )
    assert isinstance(parsed.parsed_output, Verdict)


async def test_anthropics_errors(messages_client: anthropic.AsyncAnthropic, model: str) -> None:
    asked: Any = {"model": model, "max_tokens": 8}
    with pytest.raises(anthropic.NotFoundError, match="did you mean"):
        await messages_client.messages.create(messages=TURNS, **{**asked, "model": f"{model}x"})
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
        await messages_client.messages.create(messages=[{"role": "user", "content": LONG}], **asked)
    with pytest.raises(anthropic.BadRequestError, match="does not serve"):
        await messages_client.messages.create(messages=TURNS, **{**asked, "model": f"{model}-vectors"})


@pytest_asyncio.fixture(loop_scope="module")
async def ollama_client(daemon: RunningDaemon) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=daemon.url) as one:
        yield one


def options(num_predict: int) -> Any:
    return {"temperature": 0, "num_predict": num_predict}


async def test_ollama_streams_and_goes_on(ollama_client: ollama.AsyncClient, model: str) -> None:
    whole = await ollama_client.chat(model, messages=TURNS, options=options(12))
    parts = [part async for part in await ollama_client.chat(model, messages=TURNS, options=options(12), stream=True)]
    text = "".join(part.message.content or "" for part in parts)
    assert "Paris" in text
    assert whole.message.content == text
    last = parts[-1]
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert last.done_reason == whole.done_reason
    assert (last.eval_count, last.prompt_eval_count) == (whole.eval_count, whole.prompt_eval_count)
    assert (whole.eval_count or 0) > 0
    cut = await ollama_client.generate(model, prompt=ASK, options=options(2))
    assert (cut.done, cut.done_reason) == (True, "length")


async def test_ollama_calls_a_tool_and_answers_by_a_schema(ollama_client: ollama.AsyncClient, model: str) -> None:
    messages: Any = [{"role": "user", "content": WEATHER}]
    answer = await ollama_client.chat(model, messages=messages, tools=[OLLAMA_TOOL], options=options(60))
    streamed = [
        call
        async for part in await ollama_client.chat(
            model, messages=messages, tools=[OLLAMA_TOOL], options=options(60), stream=True
        )
        for call in part.message.tool_calls or ()
    ]
    (call,) = answer.message.tool_calls or ()
    assert call.function.name == "get_weather"
    assert [one.function.arguments for one in streamed] == [call.function.arguments]
    check_arguments(call.function.arguments)
    messages += [answer.message, {"role": "tool", "tool_name": "get_weather", "content": SNOW}]
    told = await ollama_client.chat(model, messages=messages, options=options(4))
    assert told.message.content
    parsed = await ollama_client.chat(model, messages=PURRS, format=Verdict.model_json_schema(), options=options(60))
    assert isinstance(Verdict.model_validate_json(parsed.message.content or ""), Verdict)


async def test_ollama_gets_embeddings(ollama_client: ollama.AsyncClient, model: str) -> None:
    both = await ollama_client.embed(f"{model}-vectors", input=["a red fox", "bread"])
    old = await ollama_client.embeddings(f"{model}-vectors", prompt="bread")
    assert list(old.embedding) == pytest.approx(list(both.embeddings[1]), abs=1e-6)
    assert both.embeddings[0] != both.embeddings[1]


async def test_ollamas_errors(ollama_client: ollama.AsyncClient, model: str) -> None:
    with pytest.raises(ollama.ResponseError, match=f"did you mean '{model}") as caught:
        await ollama_client.chat(f"{model}x", messages=TURNS)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"2048") as caught:
        await ollama_client.chat(model, messages=[{"role": "user", "content": LONG}], options=options(8))
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="does not serve"):
        await ollama_client.chat(f"{model}-vectors", messages=TURNS)


async def test_llama_servers_own_completion_streams_to_its_end(daemon: RunningDaemon, model: str) -> None:
    asked = {"model": model, "prompt": "One, two, three,", "n_predict": 8, "temperature": 0, "stream": True}
    async with aiohttp.ClientSession(daemon.url) as http, http.post("/completion", json=asked) as response:
        if model == "command":
            assert response.status == 404
            return
        events = [line.removeprefix("data: ") for line in (await response.text()).splitlines() if line]
    *pieces, last, done = events
    assert done == "[DONE]"
    assert json.loads(last)["stop"] is True
    assert "four" in "".join(json.loads(piece)["content"] for piece in pieces)
