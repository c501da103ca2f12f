"""The typed edge: which bodies are taken, which are refused, and which field is named."""

from __future__ import annotations

import json

import pytest
from worker_doubles import CharTokenizer

from backends.llama_cpp.chat.body import decode_chat
from backends.llama_cpp.chat.messages import message_text
from backends.llama_cpp.engine.types import Sampling
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.requests import Limits, choices, decode_completion, max_tokens, several, stops
from backends.llama_cpp.sampling import sampling

LIMITS = Limits(n_parallel=4, n_vocab=1000, n_ctx=512, n_embd=3, n_batch=64, n_input=64)
USER = [{"role": "user", "content": "hi"}]


def chat(**fields: object) -> bytes:
    return json.dumps({"messages": USER, **fields}).encode()


def check_chat(data: bytes) -> None:
    """Every check a chat body passes before it is rendered."""
    body = decode_chat(data)
    choices(body, LIMITS)
    max_tokens(body)
    stops(body)
    body.alternatives()
    sampling(body, LIMITS.n_vocab, CharTokenizer())


REFUSED = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": 5, "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
    (
        {"messages": [*USER, {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]},
        "messages[1].content[0].type",
    ),
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),
    ({"n_cmpl": 5}, "n_cmpl"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"n_predict": -2}, "n_predict"),
    ({"max_tokens": True}, "max_tokens"),
    ({"stop": 3}, "stop"),
    ({"stop": ["x"] * 33}, "stop"),
    ({"stop": ["x" * 513]}, "stop[0]"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"cache_prompt": 1}, "cache_prompt"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
    ({"n_probs": 101}, "n_probs"),
    ({"n_probs": -1}, "n_probs"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{param}-{i}" for i, (_, param) in enumerate(REFUSED)])
def test_a_bad_field_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check_chat(json.dumps({"messages": USER, **fields}).encode())
    assert refusal.value.status == 400
    assert refusal.value.param == param
    assert refusal.value.message.startswith(param.split("[...]")[0])


UNSUPPORTED = [
    ("grammar_lazy", True, False),
    ("grammar_triggers", [{"type": 0, "value": "x"}], []),
    ("functions", [{}], []),
    ("post_sampling_probs", True, False),
    ("lora", [{"id": 0, "scale": 1}], []),
    ("modalities", ["text", "audio"], ["text"]),
]


@pytest.mark.parametrize(("name", "switched_on", "off"), UNSUPPORTED)
def test_a_parameter_that_is_not_built_is_refused_unless_it_is_off(name: str, switched_on: object, off: object) -> None:
    check_chat(chat(**{name: off}))
    check_chat(chat(**{name: None}))
    with pytest.raises(RequestError, match="not supported yet") as refusal:
        check_chat(chat(**{name: switched_on}))
    assert refusal.value.param == name


@pytest.mark.parametrize("name", ["best_of", "echo", "suffix"])
def test_a_completion_refuses_what_only_completions_have(name: str) -> None:
    value = {"best_of": 2, "echo": True, "suffix": "x"}[name]
    with pytest.raises(RequestError) as refusal:
        decode_completion(json.dumps({"prompt": "a", name: value}).encode())
    assert refusal.value.param == name


def test_unknown_fields_and_companions_of_what_is_off_are_ignored() -> None:
    check_chat(chat(model="x", user="me", reasoning_budget_message="enough", no_such_field={"a": [1]}))


def test_null_means_absent() -> None:
    nulls = {name: None for fields, _ in REFUSED for name in fields if name != "messages"}
    body = decode_chat(chat(**nulls))
    assert sampling(body, LIMITS.n_vocab, CharTokenizer()) == Sampling()
    assert body.alternatives() is None
    assert (choices(body, LIMITS), max_tokens(body), stops(body)) == (1, None, ())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"text"',
        b"{",
        b'{"messages": NaN}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"temperature": 1e999, "messages": []}',
        b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"tools": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_proper_json_object_is_400(data: bytes) -> None:
    with pytest.raises(RequestError) as refusal:
        decode_chat(data)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"n_probs": 7}, 7),
        ({"n_probs": 0}, None),
        ({"n_probs": 7, "logprobs": True, "top_logprobs": 2}, 7),
    ],
)
def test_a_chat_asks_for_logprobs_in_openais_way_or_llama_servers(
    fields: dict[str, object], expected: int | None
) -> None:
    assert decode_chat(chat(**fields)).alternatives() == expected


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, None), ({"logprobs": False}, None), ({"logprobs": 0}, 0), ({"logprobs": 5}, 5)]
)
def test_a_completion_says_how_many_logprobs(fields: dict[str, object], expected: int | None) -> None:
    assert decode_completion(json.dumps({"prompt": "a", **fields}).encode()).alternatives() == expected


@pytest.mark.parametrize("logprobs", [True, 6, -1, "1"])
def test_a_completion_refuses_other_logprobs(logprobs: object) -> None:
    with pytest.raises(RequestError, match="logprobs") as refusal:
        decode_completion(json.dumps({"prompt": "a", "logprobs": logprobs}).encode()).alternatives()
    assert refusal.value.param == "logprobs"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 3, "max_tokens": 5}, 3),
        ({"n_predict": 9}, 9),
        ({"n_predict": -1}, None),
        ({"max_tokens": -1}, None),
    ],
)
def test_the_token_limit_has_three_names(fields: dict[str, int], expected: int | None) -> None:
    assert max_tokens(decode_chat(chat(**fields))) == expected


def test_stop_takes_one_string_or_several_and_drops_empty_ones() -> None:
    assert stops(decode_chat(chat(stop="x"))) == ("x",)
    assert stops(decode_chat(chat(stop=["a", "", "b"]))) == ("a", "b")


def test_text_parts_are_joined_by_newlines_and_null_content_is_empty() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = decode_chat(
        json.dumps({"messages": [{"role": "user", "content": parts}, {"role": "user", "content": None}]}).encode()
    )
    assert [message_text(message) for message in body.messages] == ["a\nb", ""]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", ("text",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a", [1]], ("a", (1,))),
    ],
)
def test_a_prompt_has_four_forms(prompt: object, expected: object) -> None:
    body = decode_completion(json.dumps({"prompt": prompt}).encode())
    assert several(body.prompt, "prompt", 2) == expected


@pytest.mark.parametrize("prompt", [[], [1, "a"], [[1], 2], ["a", "b", "c"]])
def test_an_empty_mixed_or_overlong_prompt_list_is_refused(prompt: object) -> None:
    body = decode_completion(json.dumps({"prompt": prompt}).encode())
    with pytest.raises(RequestError) as refusal:
        several(body.prompt, "prompt", 2)
    assert refusal.value.param == "prompt"


@pytest.mark.parametrize("prompt", [None, 5, True, [1.5], [-1], [[-1]], [None], {"a": 1}])
def test_a_prompt_of_another_type_is_refused(prompt: object) -> None:
    with pytest.raises(RequestError) as refusal:
        decode_completion(json.dumps({"prompt": prompt}).encode())
    assert str(refusal.value.param).startswith("prompt")
