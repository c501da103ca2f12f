"""LangChain's OpenAI classes against a daemon with real models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from support.client_daemon import client_daemon
from support.running_daemon import RunningDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK = "What is the capital of France?"


@tool
def get_weather(city: Literal["Oslo", "Paris"]) -> str:
    """The weather in a city."""
    return f"Snow in {city}, minus 3 degrees."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with client_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def base(daemon: RunningDaemon) -> AsyncIterator[dict[str, Any]]:
    """What every class is told of the daemon."""
    # LangChain keeps clients of its own for ever: this one is closed.
    async with openai.DefaultAsyncHttpxClient() as http:
        yield {"base_url": f"{daemon.url}/v1", "api_key": "none", "max_retries": 0, "http_async_client": http}


@pytest.fixture
def chat(base: dict[str, Any]) -> ChatOpenAI:
    return ChatOpenAI(model="smol", temperature=0, max_tokens=24, **base)


async def test_a_chat_answers_streams_and_counts_its_tokens(chat: ChatOpenAI) -> None:
    answer = await chat.ainvoke([SystemMessage("Be brief."), HumanMessage(ASK)])
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata is not None
    chunks = [chunk async for chunk in chat.astream([SystemMessage("Be brief."), HumanMessage(ASK)], stream_usage=True)]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert len(chunks) > 3
    assert whole.content == answer.content
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]
    assert whole.response_metadata["finish_reason"] == answer.response_metadata["finish_reason"]


async def test_several_questions_at_once_are_answered_in_order(chat: ChatOpenAI) -> None:
    questions = [f"What is {number} plus one?" for number in range(4)]
    together = await chat.abatch(questions)
    assert len(together) == 4
    assert all(answer.content for answer in together)


async def test_a_conversation_with_a_tools_result_goes_on(chat: ChatOpenAI) -> None:
    call: Any = {"name": "get_weather", "args": {"city": "Oslo"}, "id": "call00001", "type": "tool_call"}
    history: list[BaseMessage] = [HumanMessage("What is the weather in Oslo?"), AIMessage("", tool_calls=[call])]
    result = await get_weather.ainvoke(call)
    assert isinstance(result, ToolMessage)
    history.append(result)
    answer = await chat.bind_tools([get_weather]).ainvoke(history)
    assert answer.content or answer.tool_calls
    history += [answer, HumanMessage("Thank you. Is that cold?")]
    assert (await chat.ainvoke(history)).content


async def test_embeddings_are_those_of_the_openai_client(base: dict[str, Any]) -> None:
    texts = ["a red fox", "bread and butter", "snow"]
    # Without this LangChain sends tokens of OpenAI's own vocabularies.
    embeddings = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False, chunk_size=2, **base)
    found = [*(await embeddings.aembed_documents(texts)), await embeddings.aembed_query(texts[0])]
    async with openai.AsyncOpenAI(base_url=base["base_url"], api_key="none") as client:
        expected = (await client.embeddings.create(model="vectors", input=[*texts, texts[0]])).data
    for vector, item in zip(found, expected, strict=True):
        assert vector == pytest.approx(item.embedding, abs=1e-6)


async def test_a_text_model_completes_and_streams(base: dict[str, Any]) -> None:
    model = OpenAI(model="smol", temperature=0, max_tokens=8, **base)
    text = await model.ainvoke("One, two, three,")
    assert text
    assert "".join([piece async for piece in model.astream("One, two, three,")]) == text


class Verdict(BaseModel):
    """Which animal it is."""

    animal: Literal["cat", "dog"]
    sure: bool


async def test_a_forced_call_is_made_run_and_answered(chat: ChatOpenAI) -> None:
    history: list[BaseMessage] = [HumanMessage("What is the weather in Oslo?")]
    asked = await chat.bind_tools([get_weather], tool_choice="get_weather").ainvoke(history, max_tokens=100)
    assert isinstance(asked, AIMessage)
    (call,) = asked.tool_calls
    result = await get_weather.ainvoke(call)
    assert isinstance(result, ToolMessage)
    assert result.tool_call_id == call["id"]
    answer = await chat.ainvoke([*history, asked, result])
    assert answer.content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_an_answer_has_the_structure_that_was_asked_for(chat: ChatOpenAI, method: Any) -> None:
    judge = chat.model_copy(update={"max_tokens": 100}).with_structured_output(Verdict, method=method)
    assert isinstance(await judge.ainvoke("It purrs. Which animal is it?"), Verdict)
