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
FUNCTION = """
def get_weather(city: str) -> str:
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


async def test_a_tool_is_offered_and_the_conversation_goes_on(llm: Llm) -> None:
    asked = ("-m", "smol", "-o", "max_tokens", "40", "-o", "temperature", "0", "--functions", FUNCTION)
    await llm(*asked, "--cl", "3", "What is the weather in Oslo?")
    (offered,) = {one["name"] for response in await llm.logged() for one in response["tools"]}
    assert offered == "get_weather"


async def test_a_text_is_completed_and_an_unknown_model_explained(llm: Llm) -> None:
    assert (await llm("-m", "words", "-o", "max_tokens", "8", "-o", "temperature", "0", "One, two, three,")).strip()
    assert "did you mean 'smol'" in await llm("-m", "misspelt", "Hi", code=1)
