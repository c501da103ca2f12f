"""How large a request is taken to be before a model has seen it."""

from __future__ import annotations

import json

import pytest

from backends.base import Settings
from swapd.api import size
from swapd.api.openai import Endpoint, read, rewrite
from swapd.config.schema import Model


def test_a_token_is_counted_for_every_four_bytes() -> None:
    assert size.of_prompt({"prompt": "x"}, 400) == 100
    assert size.of_prompt({"prompt": "x"}, 401) == 101


def test_an_image_counts_by_the_piece_and_not_by_its_bytes() -> None:
    url = "data:image/png;base64," + "A" * 4_000_000
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    fields = {"messages": [{"role": "user", "content": content}]}
    assert size.of_prompt(fields, len(json.dumps(fields))) < size.MEDIUM_TOKENS + 60


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "text",
        [None],
        [{"content": [None, "x", {"type": "image_url"}, {"type": "input_audio", "input_audio": 3}]}],
    ],
)
def test_fields_of_any_shape_are_taken(messages: object) -> None:
    assert size.of_prompt({"messages": messages}, 40) >= 10


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": 40}, 40),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"n_predict": -1}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": None, "n_predict": 8}, 8),
        ({"max_tokens": 0}, 0),
    ],
)
def test_an_answer_is_limited_by_what_the_request_says(fields: dict[str, object], limit: int | None) -> None:
    assert size.answer_limit(fields) == limit


@pytest.mark.parametrize(
    ("endpoint", "fields", "expected"),
    [
        (Endpoint.COMPLETIONS, {"prompt": "x" * 400, "max_tokens": 9}, (True, 9)),
        (Endpoint.COMPLETIONS, {"prompt": "x" * 400}, (True, None)),
        (Endpoint.EMBEDDINGS, {"input": "x" * 400}, (True, 0)),
        (Endpoint.TOKENIZE, {"content": "x" * 400}, (False, 0)),
    ],
)
def test_only_what_a_model_computes_counts(
    endpoint: Endpoint, fields: dict[str, object], expected: tuple[bool, int | None]
) -> None:
    asked = read(endpoint, json.dumps({"model": "m", **fields}).encode())
    rewritten = rewrite(asked, Model(id="m", settings=Settings()))
    assert (rewritten.prompt_tokens > 100, rewritten.answer_limit) == expected
