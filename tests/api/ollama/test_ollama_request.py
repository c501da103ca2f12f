import json
from dataclasses import dataclass
from math import inf
from typing import Any

import pytest

from swapd.api.ollama import request
from swapd.api.openai import Endpoint, check
from swapd.errors import BadRequestError

PNG = "iVBORw0KGgo="


@dataclass
class Clock:
    arrived_at: float = 1_700_000_000.0
    waited_s: float = 0.0
    first_token_s: float | None = None

    def age_s(self) -> float:
        return 0.0


def chat(**fields: Any) -> request.Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return request.read_chat(json.dumps(body).encode(), Clock())


def generate(**fields: Any) -> request.Asked:
    return request.read_generate(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), Clock())


def fields_of(asked: request.Asked) -> dict[str, Any]:
    """What a worker would be asked, having passed OpenAI's own check."""
    assert asked.translated is not None
    check(asked.translated.endpoint, asked.translated.fields)
    return asked.translated.fields


def test_a_chat_is_always_streamed_by_the_worker_with_its_counts() -> None:
    for stream in (None, True, False):
        fields = fields_of(chat(stream=stream))
        assert fields == {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def test_options_reach_the_worker_by_its_names_and_those_of_loading_do_not() -> None:
    options = {
        "num_ctx": 8192, "num_gpu": 99, "num_thread": 4, "use_mmap": True, "numa": False, "unheard_of": [1],
        "temperature": 0.5, "top_k": 40.0, "top_p": 0.9, "min_p": 0.05, "typical_p": 1, "seed": 7, "stop": ["\n"],
        "num_predict": 16, "repeat_penalty": 1.1, "repeat_last_n": 64, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
    }  # fmt: skip
    fields = fields_of(chat(options=options))
    for name in ("model", "messages", "stream", "stream_options"):
        del fields[name]
    assert fields == {
        "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 1.0, "seed": 7, "stop": ["\n"],
        "max_tokens": 16, "repeat_penalty": 1.1, "repeat_last_n": 64, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("limit", [-1, -2, 0])
def test_no_limit_of_tokens_is_no_field(limit: int) -> None:
    assert "max_tokens" not in fields_of(chat(options={"num_predict": limit}))


def test_a_format_is_json_or_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert "response_format" not in fields_of(chat(format=""))
    assert fields_of(chat(format="json"))["response_format"] == {"type": "json_object"}
    asked = fields_of(chat(format=schema))["response_format"]
    assert (asked["type"], asked["json_schema"]["schema"]) == ("json_schema", schema)
    with pytest.raises(BadRequestError, match="xml") as caught:
        chat(format="xml")
    assert caught.value.param == "format"


def test_thinking_is_the_templates_to_switch_and_a_level_its_effort() -> None:
    assert "chat_template_kwargs" not in fields_of(chat())
    assert fields_of(chat(think=False))["chat_template_kwargs"] == {"enable_thinking": False}
    fields = fields_of(chat(think="high"))
    assert (fields["reasoning_effort"], fields["chat_template_kwargs"]) == ("high", {"enable_thinking": True})


def test_images_stand_before_the_text_as_data_urls() -> None:
    (message,) = fields_of(chat(messages=[{"role": "user", "content": "what?", "images": [PNG, "/9j/4AAQ"]}]))[
        "messages"
    ]
    assert [part.get("image_url", {}).get("url", part.get("text")) for part in message["content"]] == [
        f"data:image/png;base64,{PNG}",
        "data:image/jpeg;base64,/9j/4AAQ",
        "what?",
    ]


def test_calls_get_ids_and_results_find_theirs() -> None:
    def call(name: str, **arguments: object) -> dict[str, object]:
        return {"function": {"name": name, "arguments": arguments}}

    history = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [call("a", x=1), call("b"), call("a", x=2)],
        },
        {"role": "tool", "tool_name": "b", "content": "of b"},
        {"role": "tool", "tool_name": "a", "content": "first a"},
        {"role": "tool", "content": "second a"},
    ]
    messages = fields_of(chat(messages=history))["messages"]
    ids = [one["id"] for one in messages[1]["tool_calls"]]
    assert len(set(ids)) == 3
    assert [one["function"]["arguments"] for one in messages[1]["tool_calls"]] == ['{"x":1}', "{}", '{"x":2}']
    assert messages[1]["reasoning_content"] == "hm"
    assert [message["tool_call_id"] for message in messages[2:]] == [ids[1], ids[0], ids[2]]


def test_a_prompt_is_a_chat_of_one_message_a_gap_or_a_text_to_go_on_with() -> None:
    asked = generate(system="be brief", images=[PNG])
    assert asked.translated is not None
    assert asked.translated.endpoint is Endpoint.CHAT_COMPLETIONS
    system, user = fields_of(asked)["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert user["content"][-1] == {"type": "text", "text": "hi"}
    raw = generate(raw=True, think=False, options={"num_predict": 3})
    assert raw.translated is not None
    assert raw.translated.endpoint is Endpoint.COMPLETIONS
    assert fields_of(raw)["prompt"] == "hi"
    assert "chat_template_kwargs" not in fields_of(raw)
    gap = generate(suffix="end")
    assert gap.translated is not None
    assert gap.translated.endpoint is Endpoint.INFILL
    assert (fields_of(gap)["input_prefix"], fields_of(gap)["input_suffix"]) == ("hi", "end")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "system": "x"}, "system"),
        ({"suffix": "x", "images": [PNG]}, "images"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"temperature": 9}}, "options.temperature"),
        ({"keep_alive": "300"}, "keep_alive"),
        ({"keep_alive": []}, "keep_alive"),
        ({"think": "very"}, "think"),
        ({"prompt": 7}, "prompt"),
        ({"images": [7]}, "images[0]"),
    ],
)
def test_what_would_be_answered_wrongly_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        generate(**fields)
    assert caught.value.param == param


def test_a_request_without_anything_to_say_is_a_wish() -> None:
    load, unload, chats = generate(prompt="", keep_alive=-1), generate(prompt="", keep_alive=0), chat(messages=[])
    assert (load.translated, unload.translated, chats.translated) == (None, None, None)
    assert (load.keep_alive_s, unload.keep_alive_s, chats.keep_alive_s) == (inf, 0.0, None)
    answer = json.loads(load.empty("load"))
    assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, "load")
    assert json.loads(chats.empty("unload"))["message"] == {"role": "assistant", "content": ""}
    assert json.loads(chats.empty("load"))["created_at"] == "2023-11-14T22:13:20.000000+00:00"


def test_embeddings_come_in_two_forms() -> None:
    new = request.read_embed(b'{"model":"m","input":["a","b"],"truncate":true,"dimensions":4}', Clock())
    assert fields_of(new) == {"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 4}
    old = request.read_embeddings(b'{"model":"m","prompt":"a"}', Clock())
    assert fields_of(old)["input"] == "a"
    assert request.read_embed(b'{"model":"m","input":[]}', Clock()).translated is None
    with pytest.raises(BadRequestError, match="input"):
        request.read_embed(b'{"model":"m"}', Clock())


def test_the_older_name_of_the_model_is_understood_and_none_is_refused() -> None:
    assert request.read_chat(b'{"name":"m","messages":[]}', Clock()).model_name == "m"
    with pytest.raises(BadRequestError) as caught:
        request.read_chat(b'{"messages":[]}', Clock())
    assert caught.value.param == "model"
