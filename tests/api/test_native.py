from __future__ import annotations

import json

import pytest

from swapd.api.openai import ALSO_AT, Endpoint, read
from swapd.errors import BadRequestError

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SOUND: dict[Endpoint, dict[str, object]] = {
    Endpoint.RERANK: {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True},
    Endpoint.INFILL: {"input_prefix": "a", "input_suffix": ["b", 5], "input_extra": [{"text": "x"}], "top_k": 3},
    Endpoint.COMPLETION: {"prompt": ["a", 5], "n_predict": 3, "stream": True},
    Endpoint.TOKENIZE: {"content": ["a", 5], "add_special": True, "with_pieces": None},
    Endpoint.DETOKENIZE: {"tokens": [1, 2]},
    Endpoint.APPLY_TEMPLATE: CHAT,
    Endpoint.CHAT_INPUT_TOKENS: CHAT,
}


def encoded(fields: dict[str, object]) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


@pytest.mark.parametrize("endpoint", SOUND)
def test_what_clients_send_passes_as_it_is(endpoint: Endpoint) -> None:
    asked = read(endpoint, encoded(SOUND[endpoint]))
    assert (asked.model_name, asked.fields) == ("m", {"model": "m", **SOUND[endpoint]})


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (Endpoint.RERANK, {"documents": ["a"]}, "query"),
        (Endpoint.RERANK, {"query": "", "documents": ["a"]}, "query"),
        (Endpoint.RERANK, {"query": "q"}, "documents"),
        (Endpoint.RERANK, {"query": "q", "documents": []}, "documents"),
        (Endpoint.RERANK, {"query": "q", "documents": ["a"], "texts": ["b"]}, "documents"),
        (Endpoint.RERANK, {"query": "q", "documents": [5]}, "documents[0]"),
        (Endpoint.RERANK, {"query": "q", "documents": ["a"] * 2049}, "documents"),
        (Endpoint.RERANK, {"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        (Endpoint.INFILL, {"input_prefix": "a"}, "input_suffix"),
        (Endpoint.INFILL, {"input_prefix": "a", "input_suffix": [-1]}, "input_suffix[0]"),
        (Endpoint.INFILL, {"input_prefix": "a", "input_suffix": "b", "input_extra": [{}]}, "input_extra[0].text"),
        (Endpoint.COMPLETION, {}, "prompt"),
        (Endpoint.COMPLETION, {"prompt": [["a"]]}, "prompt[0]"),
        (Endpoint.COMPLETION, {"prompt": "a", "n_predict": -2}, "n_predict"),
        (Endpoint.TOKENIZE, {}, "content"),
        (Endpoint.TOKENIZE, {"content": [1.5]}, "content[0]"),
        (Endpoint.DETOKENIZE, {"tokens": [-1]}, "tokens[0]"),
        (Endpoint.DETOKENIZE, {"tokens": "a"}, "tokens"),
        (Endpoint.APPLY_TEMPLATE, {"messages": []}, "messages"),
        (Endpoint.CHAT_INPUT_TOKENS, {}, "messages"),
    ],
)
def test_a_field_that_is_wrong_or_missing_is_named(endpoint: Endpoint, fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(endpoint, encoded(fields))
    assert caught.value.param == param
    assert param in caught.value.message


def test_each_endpoint_says_what_it_needs_of_a_model() -> None:
    needs = {endpoint: read(endpoint, encoded(fields)).needs for endpoint, fields in SOUND.items()}
    assert needs[Endpoint.RERANK] == "rerank"
    assert needs[Endpoint.INFILL] == needs[Endpoint.COMPLETION] == "completions"
    assert {needs[Endpoint.TOKENIZE], needs[Endpoint.DETOKENIZE], needs[Endpoint.APPLY_TEMPLATE]} == {None}


def test_no_path_leads_to_two_endpoints() -> None:
    paths = [endpoint.value for endpoint in Endpoint] + [path for also in ALSO_AT.values() for path in also]
    assert len(set(paths)) == len(paths)
