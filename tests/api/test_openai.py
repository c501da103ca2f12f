import json

import pytest
from support.front_door import model, params

from swapd.api.openai import Endpoint, model_document, read, rewrite
from swapd.errors import BadRequestError
from swapd.pool.status import ListedModel

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def encoded(**fields: object) -> bytes:
    return json.dumps({**CHAT, **fields}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 1, "n": 2, "seed": -1, "stop": "x", "stream": True, "user": "u"},
        {"temperature": None, "stop": None, "stream": None, "stream_options": {"include_usage": True}},
        {"stop": ["a", "b"], "logit_bias": {"50256": -100}, "frequency_penalty": -2, "presence_penalty": 2},
        {"logit_bias": [[5, -1.5], ["text", False]]},
        {"logit_bias": {"5": 1, " text": False}, "samplers": "kpmt"},
        {"max_tokens": 1, "max_completion_tokens": 5, "logprobs": True, "top_logprobs": 20},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "new", "u": 1}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}, {"role": "tool", "content": ""}]},
        {"min_p": 0.1, "mirostat": 2, "response_format": {"type": "json_object"}},
    ],
)
def test_what_openai_clients_send_is_accepted(fields: dict[str, object]) -> None:
    asked = read(Endpoint.CHAT_COMPLETIONS, encoded(**fields))
    assert asked.model_name == "m"
    assert asked.fields == {**CHAT, **fields}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", -1),
        ("n", 0),
        ("n", 129),
        ("n", 1.5),
        ("seed", 1.5),
        ("stop", 5),
        ("stream", 1),
        ("stream_options", []),
        ("max_tokens", 0),
        ("max_completion_tokens", -1),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("logit_bias", 5),
        ("top_logprobs", 21),
        ("tools", {}),
        ("response_format", "json"),
        ("model", ""),
        ("model", None),
        ("model", "x" * 300),
        ("messages", "hi"),
    ],
)
def test_a_wrong_type_or_range_names_the_field(field: str, value: object) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(Endpoint.CHAT_COMPLETIONS, encoded(**{field: value}))
    assert caught.value.param == field
    assert caught.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize("value", ["text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
@pytest.mark.parametrize(("endpoint", "field"), [(Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")])
def test_texts_and_tokens_are_both_inputs(endpoint: Endpoint, field: str, value: object) -> None:
    assert read(endpoint, json.dumps({"model": "m", field: value}).encode()).fields[field] == value


@pytest.mark.parametrize("value", [None, 5, [], [1, "a"], [[1], "a"], [[]], [True], [1.5], [-1], [None], {}])
@pytest.mark.parametrize(("endpoint", "field"), [(Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")])
def test_other_inputs_are_refused(endpoint: Endpoint, field: str, value: object) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(endpoint, json.dumps({"model": "m", field: value}).encode())
    assert caught.value.param is not None
    assert caught.value.param.startswith(field)


def test_a_rewritten_request_has_the_real_id_and_the_models_params() -> None:
    known = model("real/id", aliases=("m",), params=params(set={"top_k": 3, "stream": True}, strip=("top_k", "n")))
    rewritten = rewrite(read(Endpoint.CHAT_COMPLETIONS, encoded(n=2, top_k=99, x=[1])), known)
    assert rewritten.stream
    assert json.loads(rewritten.body) == {**CHAT, "model": "real/id", "x": [1], "top_k": 3, "stream": True}


def test_an_aliass_params_come_after_the_models_and_each_ones_set_after_its_strip() -> None:
    known = model(
        "id",
        aliases=("m", "other"),
        params=params(set={"a": "model", "b": "model", "c": "model"}, strip=("a", "x")),
        alias_params={"m": params(set={"b": "alias", "x": "alias"}, strip=("b", "c"))},
    )
    sent = encoded(a="client", b="client", c="client", x="client", y="client")
    changed = json.loads(rewrite(read(Endpoint.CHAT_COMPLETIONS, sent), known).body)
    assert {key: changed.get(key) for key in "abcxy"} == {
        "a": "model",
        "b": "alias",
        "c": None,
        "x": "alias",
        "y": "client",
    }
    plain = json.loads(rewrite(read(Endpoint.CHAT_COMPLETIONS, encoded(model="other", a=1, x=1)), known).body)
    assert {key: plain.get(key) for key in "abcx"} == {"a": "model", "b": "model", "c": "model", "x": None}


def test_a_worker_is_told_the_name_that_it_knows_its_model_by() -> None:
    known = model("id", aliases=("m",), model_name="org/upstream")
    assert json.loads(rewrite(read(Endpoint.CHAT_COMPLETIONS, encoded()), known).body)["model"] == "org/upstream"


def test_what_media_ask_of_a_model_is_told_with_the_field_of_the_first_that_does() -> None:
    text, sound = ({"type": kind} for kind in ("text", "input_audio"))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": [text, sound, image]},
        {"role": "user", "content": [image, {"type": "file"}]},
    ]
    asked = read(Endpoint.CHAT_COMPLETIONS, encoded(messages=messages))
    assert asked.senses == (
        ("audio", "messages[1].content[1].input_audio"),
        ("vision", "messages[1].content[2].image_url"),
    )
    assert read(Endpoint.CHAT_COMPLETIONS, encoded()).senses == ()


def test_a_model_that_was_never_loaded_has_a_document() -> None:
    document = model_document(ListedModel(id="real/id", aliases=("m",), state="unloaded"), created=7)
    assert document["id"] == "real/id"
    assert document["created"] == 7
    assert document["state"] == "unloaded"
    assert document["aliases"] == ["m"]
    assert document["context_length"] is None
    assert document["input_modalities"] == ["text"]
    assert document["capabilities"] == []
    assert (document["type"], document["display_name"]) == ("model", "real/id")
    assert document["created_at"] == "1970-01-01T00:00:07+00:00"
    assert not document.keys() & {"name", "description", "metadata"}


def test_a_models_document_has_what_people_are_to_be_told() -> None:
    listed = ListedModel(
        id="m", aliases=(), state="ready", name="The Model", description="It helps.", metadata={"family": "x"}
    )
    document = model_document(listed, created=7)
    assert (document["id"], document["name"], document["display_name"]) == ("m", "The Model", "The Model")
    assert (document["description"], document["metadata"]) == ("It helps.", {"family": "x"})
