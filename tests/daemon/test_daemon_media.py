"""Images through the whole daemon, asked by the official OpenAI client, on a tiny model that really sees."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from support.mmproj_files import gif, png, wav, write_llava
from support.running_daemon import RunningDaemon, running_daemon
from support.seeing import write_text_model

CONFIG = """
server:
  listen: 127.0.0.1:0
  state_dir: {dir}/state
  runtime_dir: {dir}/run
memory:
  budget: {{RAM: 2GiB}}
defaults:
  path: {dir}/tiny.gguf
  use_extra_bufts: false
  n_threads: 1
  n_ctx: 1024
  n_parallel: 2
  type_k: f32
  type_v: f32
  flash_attn: false
models:
  seeing: {{mmproj: mmproj.gguf}}
  blind: {{}}
  misled: {{mmproj: tiny.gguf}}
"""


@dataclass
class Home:
    daemon: RunningDaemon
    client: openai.AsyncOpenAI

    async def ask(self, *parts: dict[str, Any], model: str = "seeing", **fields: Any) -> Any:
        history = fields.pop("history", [])
        messages: Any = [*history, {"role": "user", "content": list(parts)}]
        fields = {"max_tokens": 16, "temperature": 0, **fields}
        return await self.client.chat.completions.create(model=model, messages=messages, **fields)

    async def refusal(self, *parts: dict[str, Any], model: str = "seeing") -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as refused:
            await self.ask(*parts, model=model)
        return refused.value


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    write_text_model(tmp_path / "tiny.gguf")
    write_llava(tmp_path / "mmproj.gguf")
    async with running_daemon(tmp_path, CONFIG.format(dir=tmp_path)) as daemon:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
            yield Home(daemon, client)


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def shown(data: bytes | str) -> dict[str, Any]:
    address = data if isinstance(data, str) else f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}


async def test_a_conversation_about_an_image(home: Home) -> None:
    first = await home.ask(said("What is this?"), shown(png(seed=1)))
    again = await home.ask(said("What is this?"), shown(png(seed=1)))
    assert first.choices[0].message.content
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1 > 64
    # The second turn: the image is neither encoded nor decoded again.
    history = [
        {"role": "user", "content": [said("What is this?"), shown(png(seed=1))]},
        {"role": "assistant", "content": first.choices[0].message.content},
    ]
    second = await home.ask(said("And what colour?"), history=history)
    assert second.usage.prompt_tokens_details.cached_tokens > 64
    # Another image is another prompt.
    other = await home.ask(said("What is this?"), shown(png(seed=2)))
    assert other.usage.prompt_tokens == first.usage.prompt_tokens
    assert other.usage.prompt_tokens_details.cached_tokens < 64


async def test_an_answer_about_an_image_is_streamed(home: Home) -> None:
    whole = await home.ask(shown(png(seed=3)), said("What is this?"))
    pieces = [
        chunk.choices[0].delta.content or ""
        async for chunk in await home.ask(shown(png(seed=3)), said("What is this?"), stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 2


async def test_bad_images_are_refused_by_field_with_the_reason(home: Home) -> None:
    for address, says in (
        ("https://example.org/cat.png", "this server fetches nothing for a client"),
        ("data:image/png;base64,aGVsbG8=", "is no image that is known"),
        (shown(gif(10_000, 10_000))["image_url"]["url"], "100.0 megapixels"),
    ):
        refused = await home.refusal(said("Look"), shown(address))
        assert refused.param == "messages[0].content[1].image_url.url"
        assert says in refused.message
    # And the worker that said so goes on.
    assert (await home.ask(said("Look"), shown(png()))).choices[0].message.content
    assert (await home.daemon.model("seeing"))["loads"] == 1


async def test_a_model_that_does_not_see_or_hear_is_not_loaded_to_say_so(home: Home) -> None:
    refused = await home.refusal(said("Look"), shown(png()), model="blind")
    assert refused.param == "messages[0].content[1].image_url"
    assert "model 'blind' takes text only" in refused.message
    sound = {"data": base64.b64encode(wav()).decode(), "format": "wav"}
    refused = await home.refusal({"type": "input_audio", "input_audio": sound})
    assert refused.param == "messages[0].content[0].input_audio"
    assert "model 'seeing' takes text, image only" in refused.message
    assert [(await home.daemon.model(model))["loads"] for model in ("blind", "seeing")] == [0, 0]


async def test_the_list_of_models_tells_who_sees_and_a_wrong_projector_is_that_models_error(home: Home) -> None:
    listed = {model.id: model.model_dump() async for model in home.client.models.list()}
    assert listed["seeing"]["input_modalities"] == ["text", "image"]
    assert listed["blind"]["input_modalities"] == ["text"]
    with pytest.raises(openai.UnprocessableEntityError, match="is not a multimodal projector but llama"):
        await home.ask(said("Hello"), model="misled")
