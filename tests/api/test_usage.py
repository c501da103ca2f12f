"""Usage that an answer itself tells: asked for, read, and taken out again."""

from __future__ import annotations

import json

import pytest

from swapd.api.usage import UsageTap, asking_for_usage
from swapd.pool.lease import TokenCounts

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
COUNTS = TokenCounts(7, 2, 3)


def compact(**fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}),
    ],
)
def test_a_request_that_does_not_ask_is_made_to(options: dict[str, object], asked: dict[str, object]) -> None:
    found = asking_for_usage(compact(model="m", messages=[{"content": '{"stream_options'}], **options))
    assert found is not None
    assert json.loads(found) == {"model": "m", "messages": [{"content": '{"stream_options'}], "stream_options": asked}


def test_one_that_asks_by_itself_stays_as_it_is() -> None:
    assert asking_for_usage(compact(model="m", stream_options={"include_usage": True})) is None


def test_a_prompt_that_speaks_of_the_option_is_none() -> None:
    body = compact(model="m", prompt='"stream_options": {"include_usage": true}')
    found = asking_for_usage(body)
    assert found is not None
    assert json.loads(found)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("choices", [{"choices": []}, {"choices": None}, {}])
def test_the_chunk_for_the_usage_alone_is_counted_and_hidden(choices: dict[str, object]) -> None:
    first, last = event(choices=[{"delta": {"content": "x"}}]), event(**choices, usage=USAGE)
    tap = UsageTap(hide=True)
    assert tap.events(first + last + b"data: [DONE]\n\n") == (first + b"data: [DONE]\n\n", 1)
    assert tap.counts == COUNTS


def test_whoever_asked_for_it_gets_it() -> None:
    last = event(choices=[], usage=USAGE)
    tap = UsageTap(hide=False)
    assert tap.events(last) == (last, 0)
    assert tap.counts == COUNTS


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_usage_beside_choices_is_counted_and_left_the_newest_one_counts(end: bytes) -> None:
    chunks = [{"choices": [{"index": 0}], "usage": {**USAGE, "completion_tokens": number}} for number in (1, 2, 3)]
    whole = b"".join(b": hm" + end + b"data: " + json.dumps(chunk).encode() + end for chunk in chunks)
    tap = UsageTap(hide=True)
    assert tap.events(whole) == (whole, 0)
    assert tap.counts == COUNTS


@pytest.mark.parametrize(
    "chunk",
    [
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"usage\\": {\\"prompt_tokens\\": 1}"}}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":-1}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":"7"}}\n\n',
        b'data: {"choices":[],"usage":{}\n\n',
        b'data: {"usage":{"x":' + b"[" * 100_000 + b"\n\n",
        b'data: {"usage":{"x":"\xff"}}\n\n',
        b"data: [DONE]\n\n",
    ],
)
def test_what_is_no_count_is_left_alone(chunk: bytes) -> None:
    tap = UsageTap(hide=True)
    assert tap.events(chunk) == (chunk, 0)
    assert tap.counts is None


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (USAGE, COUNTS),
        ({"prompt_tokens": 5, "total_tokens": 5}, TokenCounts(5, 0, 0)),
        ({"total_tokens": 9}, TokenCounts(9, 0, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 50}}, TokenCounts(5, 5, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None, "completion_tokens": None}, TokenCounts(5, 0, 0)),
        ({"completion_tokens": 5}, None),
        (None, None),
    ],
)
def test_a_whole_answer_is_counted(usage: object, counts: TokenCounts | None) -> None:
    tap = UsageTap(hide=False)
    tap.body(json.dumps({"data": [{"embedding": [0.5]}], "usage": usage}).encode())
    assert tap.counts == counts


def test_llama_servers_own_answers_are_counted_at_their_end() -> None:
    native = {
        "content": '"stop":true,"tokens_evaluated":9',
        "stop": False,
        "tokens_predicted": 1,
        "tokens_evaluated": 7,
    }
    last = {**native, "content": "", "stop": True, "tokens_predicted": 3, "timings": {"cache_n": 2, "prompt_n": 5}}
    tap = UsageTap(hide=True)
    assert tap.events(event(**native)) == (event(**native), 0)
    assert tap.counts is None
    assert tap.events(event(**last)) == (event(**last), 0)
    assert tap.counts == COUNTS
    whole = UsageTap(hide=False)
    whole.body(compact(**last))
    assert whole.counts == COUNTS
