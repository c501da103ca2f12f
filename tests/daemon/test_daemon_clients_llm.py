"""The command `llm` in an empty home, told of a daemon by its list of further OpenAI models."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.client_daemon import client_daemon
from support.running_daemon import RunningDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
EXTRA_MODELS = """
- {{model_id: smol, model_name: smol, api_base: "{url}/v1", supports_tools: true, supports_schema: true}}
- {{model_id: misspelt, model_name: smoll, api_base: "{url}/v1"}}
- {{model_id: words, model_name: smol, api_base: "{url}/v1", completion: true}}
"""
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
FUNCTION = """
import typing

def get_weather(city: typing.Literal["Oslo", "Paris"]) -> str:
    "The weather in a city."
    return f"Snow in {city}, minus 3 degrees."
"""


class Llm:
    """The command with a home of its own."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        home.mkdir()
        (home / "extra-openai-models.yaml").write_text(EXTRA_MODELS.format(url=url))

    async def __call__(self, *argv: str, code: int = 0) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "LLM_"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llm", *argv),
            env={**kept, "HOME": str(self.home), "LLM_USER_PATH": str(self.home)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode == code, errors.decode()
        return output.decode() if code == 0 else errors.decode()

    async def logged(self) -> list[dict[str, Any]]:
        """What it has kept of its conversations, the oldest first."""
        found: list[dict[str, Any]] = json.loads(await self("logs", "--json", "--count", "0"))
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with client_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture
def llm(tmp_path: Path, daemon: RunningDaemon) -> Llm:
    return Llm(tmp_path / "home", daemon.url)


async def test_a_conversation_is_streamed_and_continued(llm: Llm) -> None:
    brief = ("-o", "max_tokens", "24", "-o", "temperature", "0")
    answer = await llm("-m", "smol", "-s", "Be brief.", *brief, "What is the capital of France?")
    assert "Paris" in answer
    assert (await llm("-c", *brief, "And what is it known for?")).strip()
    first, second = await llm.logged()
    assert first["response"].strip() == answer.strip()
    assert first["conversation_id"] == second["conversation_id"]
    assert second["input_tokens"] > first["input_tokens"] + first["output_tokens"] - 5, "the first answer is in it"
    assert (
        await llm("-m", "smol", "--no-stream", "-s", "Be brief.", *brief, "What is the capital of France?")
    ) == answer


async def test_a_text_is_completed_and_an_unknown_model_explained(llm: Llm) -> None:
    assert (await llm("-m", "words", "-o", "max_tokens", "8", "-o", "temperature", "0", "One, two, three,")).strip()
    assert "did you mean 'smol'" in await llm("-m", "misspelt", "Hi", code=1)


async def test_a_call_is_run_and_the_conversation_goes_on(llm: Llm) -> None:
    options = ("-o", "max_tokens", "60", "-o", "temperature", "0")
    await llm("-m", "smol", *options, "--functions", FUNCTION, f"{CALL}\nRepeat the line above.")
    assert (await llm("-c", *options, "--functions", FUNCTION, "Is that cold?")).strip()
    called, told, *_, continued = await llm.logged()
    (call,) = called["tool_calls"]
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Oslo"})
    (result,) = told["tool_results"]
    assert result["output"] == "Snow in Oslo, minus 3 degrees."
    assert told["response"]
    assert continued["input_tokens"] > told["input_tokens"] + 5


async def test_an_answer_has_the_schema_that_was_asked_for(llm: Llm) -> None:
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["cat", "dog"]}, "sure": {"type": "boolean"}},
        "required": ["animal", "sure"],
        "additionalProperties": False,
    }
    options = ("-o", "max_tokens", "100", "-o", "temperature", "0")
    answer = await llm("-m", "smol", *options, "--schema", json.dumps(schema), "It purrs.")
    assert json.loads(answer)["animal"] in ("cat", "dog")
