"""The worker's other endpoints on a real Unix socket: vectors, reranking, tokens, templates, filling gaps."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from worker_doubles import LIMITS, Worker, events, serving

from backends.control import Usage
from backends.llama_cpp.engine.types import (
    Embed,
    Embedded,
    Ended,
    Finish,
    Generate,
    Output,
    Piece,
    Prefilled,
    SpecialTokens,
    Task,
)
from backends.llama_cpp.infill import decode_infill
from backends.llama_cpp.native import NativeAnswer

CHAT = "/v1/chat/completions"
COUNT = "/v1/chat/completions/input_tokens"
COMPLETE = "/v1/completions"
EMBED = "/v1/embeddings"
RERANK = "/v1/rerank"
ASK = {"messages": [{"role": "user", "content": "hi"}]}
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
FIM = SpecialTokens(bos=1, add_bos=True, fim_prefix=200, fim_suffix=201, fim_middle=202)
BERT = SpecialTokens(bos=1, eos=2, sep=3, add_bos=True, add_eos=True, add_sep=True)
GAP = {"input_prefix": "ab", "input_suffix": "yz", "prompt": "c"}


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "worker.sock"


@pytest.fixture
async def generator(socket_path: Path) -> AsyncIterator[Worker]:
    async with serving(socket_path, special_tokens=FIM) as worker:
        yield worker


async def ask(worker: Worker, path: str, body: object) -> Any:
    async with worker.post(path, body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


def pooled(request: Embed) -> list[list[Output]]:
    """Vectors that tell how long each input was; a reranker's score is the length of its prompt."""
    vectors = tuple((float(len(tokens)), -0.25, 0.5) for tokens in request.inputs)
    return [[Embedded(request.request_id, vectors, 7)], [Ended(request.request_id, 7, 0, 0)]]


async def test_embeddings_come_as_floats_or_base64(socket_path: Path) -> None:
    async with serving(socket_path, task=Task.EMBED) as worker:
        worker.engine.script = pooled
        answer = await ask(worker, EMBED, {"input": ["a", [1, 2, 3]], "dimensions": 3})
        assert [item["embedding"] for item in answer["data"]] == [[2.0, -0.25, 0.5], [3.0, -0.25, 0.5]]
        assert [item["index"] for item in answer["data"]] == [0, 1]
        assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        item = (await ask(worker, EMBED, {"input": "a", "encoding_format": "base64"}))["data"][0]
        assert struct.unpack("<3f", base64.b64decode(item["embedding"])) == (2.0, -0.25, 0.5)
        assert worker.usages[0] == Usage("r1", 7, 0, 0)


async def test_fewer_dimensions_are_the_first_ones_at_length_one_again(socket_path: Path) -> None:
    def script(request: Embed) -> list[list[Output]]:
        return [
            [Embedded(request.request_id, ((0.6, 0.0, 0.8), (0.0, 0.0, 1.0)), 2), Ended(request.request_id, 2, 0, 0)]
        ]

    async with serving(socket_path, task=Task.EMBED) as worker:
        worker.engine.script = script
        answer = await ask(worker, EMBED, {"input": ["a", "b"], "dimensions": 2})
        assert [item["embedding"] for item in answer["data"]] == [[1.0, 0.0], [0.0, 0.0]]
        item = (await ask(worker, EMBED, {"input": "a", "dimensions": 1, "encoding_format": "base64"}))["data"][0]
        assert base64.b64decode(item["embedding"]) == struct.pack("<f", 1.0)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"input": "a", "dimensions": 4}, "dimensions", "1 to that many"),
        ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": ["a", []]}, None, ""),
        ({"input": [[1], [256]]}, "input[1]", "0 to 255"),
        ({"input": ["a"] * 2049}, "input", "2048 are allowed"),
        ({"input": [1, "a"]}, "input", "mix"),
    ],
)
async def test_a_bad_embeddings_field_is_400_and_named(
    socket_path: Path, body: object, param: str | None, says: str
) -> None:
    async with serving(socket_path, task=Task.EMBED) as worker:
        status, error = await worker.error(EMBED, body)
        assert status == 400
        assert param is None or error["param"] == param
        assert says in error["message"]
        assert worker.engine.submitted.empty()


async def test_an_input_over_the_limit_is_400_with_both_numbers(socket_path: Path) -> None:
    async with serving(socket_path, task=Task.EMBED) as worker:
        status, error = await worker.error(EMBED, {"input": ["a", "b" * 40]})
    assert (status, error["type"], error["param"]) == (400, "exceed_context_size_error", "input[1]")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (41, LIMITS.n_input)


async def test_an_input_that_just_fits_is_taken(socket_path: Path) -> None:
    async with serving(socket_path, task=Task.EMBED) as worker:
        worker.engine.script = pooled
        answer = await ask(worker, EMBED, {"input": "b" * 39})
    assert answer["data"][0]["embedding"][0] == LIMITS.n_input


async def test_documents_are_ranked_best_first_by_prompts_of_query_and_document(socket_path: Path) -> None:
    async with serving(socket_path, task=Task.RANK, special_tokens=BERT) as worker:
        worker.engine.script = pooled
        body = {"query": "q", "documents": ["x", {"text": "longer"}, "y"], "return_documents": True}
        answer = await ask(worker, RERANK, body)
        asked: Embed = worker.engine.submitted.get_nowait()
    q = ord("q")
    assert asked.inputs[0] == (1, q, 2, 3, ord("x"), 2)
    assert asked.inputs[1] == (1, q, 2, 3, *map(ord, "longer"), 2)
    assert answer == {
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
        "results": [
            {"index": 1, "relevance_score": 11.0, "document": {"text": "longer"}},
            {"index": 0, "relevance_score": 6.0, "document": {"text": "x"}},
            {"index": 2, "relevance_score": 6.0, "document": {"text": "y"}},
        ],
    }


async def test_top_n_keeps_the_best_and_documents_are_left_out_unless_asked_for(socket_path: Path) -> None:
    async with serving(socket_path, task=Task.RANK) as worker:
        worker.engine.script = pooled
        answer = await ask(worker, RERANK, {"query": "q", "documents": ["", "abc", "ab"], "top_n": 2})
        assert answer["results"] == [{"index": 1, "relevance_score": 4.0}, {"index": 2, "relevance_score": 3.0}]
        answer = await ask(worker, RERANK, {"query": "q", "texts": ["a", "ab"], "return_text": True})
        assert answer == [{"index": 1, "score": 3.0, "text": "ab"}, {"index": 0, "score": 2.0, "text": "a"}]


async def test_a_vocabulary_without_an_end_token_closes_with_its_separator(socket_path: Path) -> None:
    special = SpecialTokens(sep=3, add_bos=True, add_eos=True)
    async with serving(socket_path, task=Task.RANK, special_tokens=special) as worker:
        worker.engine.script = pooled
        await ask(worker, RERANK, {"query": "q", "documents": ["d"]})
        assert worker.engine.submitted.get_nowait().inputs == ((ord("q"), 3, ord("d"), 3),)


async def test_a_rerank_template_of_the_file_is_filled_once(socket_path: Path) -> None:
    async with serving(
        socket_path, task=Task.RANK, rerank_template="Q{query}D{document}E", special_tokens=BERT
    ) as worker:
        worker.engine.script = pooled
        await ask(worker, RERANK, {"query": "{document}", "documents": ["{query}"]})
        assert "".join(map(chr, worker.engine.submitted.get_nowait().inputs[0])) == "Q{document}D{query}E"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": 5, "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a"], "texts": ["a"]}, "documents"),
        ({"query": "q", "documents": [1]}, "documents[0]"),
        ({"query": "q", "documents": [{"title": "x"}]}, "documents[0].text"),
        ({"query": "q", "documents": ["a"] * 2049}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a", "b" * 40]}, "documents[1]"),
        ({"query": "q", "texts": ["b" * 40]}, "texts[0]"),
    ],
)
async def test_a_bad_rerank_field_is_400_and_named(socket_path: Path, body: object, param: str) -> None:
    async with serving(socket_path, task=Task.RANK) as worker:
        status, error = await worker.error(RERANK, body)
        assert (status, error["param"]) == (400, param)
        assert worker.engine.submitted.empty()


async def test_an_endpoint_of_another_kind_of_model_says_where_to_go(socket_path: Path) -> None:
    bodies = {CHAT: ASK, COMPLETE: {"prompt": "a"}, EMBED: {"input": "a"}, RERANK: {"query": "q", "documents": ["d"]}}
    bodies["/infill"] = GAP
    own = {Task.GENERATE: (CHAT, COMPLETE, "/infill"), Task.EMBED: (EMBED,), Task.RANK: (RERANK,)}
    for task, served in own.items():
        async with serving(socket_path, task=task) as worker:
            for path in bodies.keys() - set(served):
                status, error = await worker.error(path, bodies[path])
                assert (status, error["code"]) == (400, "unsupported_endpoint")
                assert served[0] in error["message"]


async def test_text_becomes_tokens_as_llama_server_does_it(generator: Worker) -> None:
    assert await ask(generator, "/tokenize", {"content": "ab"}) == {"tokens": [97, 98]}
    assert await ask(generator, "/tokenize", {"content": "a", "add_special": True}) == {"tokens": [1, 97]}
    mixed = {"content": ["a", 7, "b"], "add_special": True}
    assert await ask(generator, "/tokenize", mixed) == {"tokens": [1, 97, 7, 98]}
    assert await ask(generator, "/tokenize", {"content": ""}) == {"tokens": []}
    pieces = await ask(generator, "/tokenize", {"content": ["a", 200], "with_pieces": True})
    assert pieces == {"tokens": [{"id": 97, "piece": "a"}, {"id": 200, "piece": [200]}]}


async def test_tokens_become_text_across_characters(generator: Worker) -> None:
    assert await ask(generator, "/detokenize", {"tokens": list("é!".encode())}) == {"content": "é!"}
    assert await ask(generator, "/detokenize", {"tokens": [97, 200]}) == {"content": "a\ufffd"}
    assert await ask(generator, "/detokenize", {"tokens": []}) == {"content": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": ["a", 256]}, "content[1]"),
        ("/tokenize", {"content": "a", "add_special": "yes"}, "add_special"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 256]}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
        ("/apply-template", {"messages": []}, "messages"),
        (COUNT, {}, "messages"),
        ("/completion", {"prompt": ["a", "b"]}, "prompt"),
        ("/completion", {"prompt": ["a", 256]}, "prompt[1]"),
        ("/completion", {"prompt": "a", "n": 2}, "n"),
        ("/infill", {"input_prefix": "a"}, "input_suffix"),
        ("/infill", {**GAP, "input_prefix": 5}, "input_prefix"),
        ("/infill", {**GAP, "input_suffix": ["a", 256]}, "input_suffix[1]"),
        ("/infill", {**GAP, "prompt": ["a"]}, "prompt"),
        ("/infill", {**GAP, "input_extra": [{"filename": "x"}]}, "input_extra[0].text"),
        ("/infill", {**GAP, "input_extra": [{"text": "x"}] * 1025}, "input_extra"),
        ("/infill", {**GAP, "n": 2}, "n"),
        ("/infill", {**GAP, "temperature": -1}, "temperature"),
    ],
)
async def test_a_bad_field_is_400_and_named(generator: Worker, path: str, body: object, param: str) -> None:
    status, error = await generator.error(path, body)
    assert (status, error["param"]) == (400, param)
    assert generator.engine.submitted.empty()


async def test_a_conversation_is_rendered_and_counted_as_a_chat_would_be(generator: Worker) -> None:
    assert await ask(generator, "/apply-template", ASK) == {"prompt": RENDERED}
    counted = await ask(generator, COUNT, ASK)
    assert counted == {"object": "response.input_tokens", "input_tokens": 1 + len(RENDERED)}
    assert generator.engine.submitted.empty()
    assert [usage.prompt_tokens for usage in generator.usages] == [0, 0]


async def test_a_template_that_refuses_names_the_messages(socket_path: Path) -> None:
    async with serving(socket_path, template="{{ raise_exception('be polite') }}") as worker:
        for path in ("/apply-template", COUNT):
            status, error = await worker.error(path, ASK)
            assert (status, error["param"], error["code"]) == (400, "messages", "chat_template_error")


def code(request: Generate) -> list[list[Output]]:
    rid, count = request.request_id, len(request.prompt)
    return [
        [Prefilled(rid, count, 3), Piece(rid, 0, "de", 2)],
        [Piece(rid, 0, "f", 1, Finish.STOP), Ended(rid, count, 3, 3)],
    ]


async def test_a_gap_is_filled_in_llama_servers_own_shape(generator: Worker) -> None:
    generator.engine.script = code
    answer = await ask(generator, "/infill", {**GAP, "n_predict": 9})
    asked: Generate = generator.engine.submitted.get_nowait()
    assert asked.prompt == (1, 200, *map(ord, "abc"), 201, *map(ord, "yz"), 202)
    assert asked.max_tokens == 9
    assert answer == {
        "index": 0,
        "content": "def",
        "stop": True,
        "model": "m",
        "tokens_predicted": 3,
        "tokens_evaluated": 9,
        "tokens_cached": 3,
        "truncated": False,
        "stop_type": "eos",
    }


async def test_a_gap_is_filled_as_a_stream_too(generator: Worker) -> None:
    generator.engine.script = code
    async with generator.post("/infill", {**GAP, "stream": True}) as response:
        *chunks, last, done = events(await response.text())
    assert done == "[DONE]"
    assert [(chunk["content"], chunk["stop"]) for chunk in chunks] == [("de", False), ("f", False)]
    assert (last["content"], last["stop"], last["tokens_predicted"]) == ("", True, 3)


async def test_a_text_goes_on_in_llama_servers_own_shape(generator: Worker) -> None:
    generator.engine.script = code
    answer = await ask(generator, "/completion", {"prompt": ["a", 7], "n_predict": 9})
    asked: Generate = generator.engine.submitted.get_nowait()
    assert (asked.prompt, asked.max_tokens) == ((1, 97, 7), 9)
    assert (answer["content"], answer["stop"], answer["stop_type"]) == ("def", True, "eos")
    async with generator.post("/completion", {"prompt": "a", "stream": True}) as response:
        *chunks, last, done = events(await response.text())
    assert (done, last["stop"], [chunk["content"] for chunk in chunks]) == ("[DONE]", True, ["de", "f"])


async def test_a_gap_whose_request_fails_says_so(generator: Worker) -> None:
    generator.engine.script = lambda request: [
        [Prefilled(request.request_id, 9, 0), Piece(request.request_id, 0, "x", 1)],
        [Ended(request.request_id, 9, 0, 1, "the batch broke")],
    ]
    status, error = await generator.error("/infill", GAP)
    assert (status, error["message"]) == (500, "the batch broke")


async def test_a_model_without_fill_in_tokens_is_400_and_says_which(socket_path: Path) -> None:
    async with serving(socket_path, special_tokens=SpecialTokens(fim_prefix=5)) as worker:
        status, error = await worker.error("/infill", GAP)
    assert (status, error["code"]) == (400, "unsupported_endpoint")
    assert error["message"] == "m cannot fill in the middle: its vocabulary has no suffix and no middle token"


async def test_a_long_gap_keeps_what_is_nearest_and_extra_files_what_room_is_left(generator: Worker) -> None:
    generator.engine.script = code
    body = {"input_prefix": "p" * 100 + "P", "input_suffix": "S" + "s" * 100, "n_predict": 100}
    extra = [{"text": "e" * 50 + "E", "filename": "a.py"}]
    await ask(generator, "/infill", {**body, "input_extra": extra})
    asked: Generate = generator.engine.submitted.get_nowait()
    quarter = LIMITS.n_batch // 4
    gap = [1, 200, *[ord("p")] * (3 * quarter - 1), ord("P"), 201, ord("S"), *[ord("s")] * (quarter - 3), 202]
    assert list(asked.prompt[-len(gap) :]) == gap
    left = asked.prompt[: -len(gap)]
    assert len(left) == LIMITS.n_ctx - 100 - len(gap)
    assert left[-1] == ord("E")


async def test_extra_files_come_first_with_their_names(socket_path: Path) -> None:
    special = SpecialTokens(fim_prefix=200, fim_suffix=201, fim_middle=202, fim_repository=203, fim_separator=204)
    async with serving(socket_path, special_tokens=special) as worker:
        worker.engine.script = code
        await ask(worker, "/infill", {**GAP, "n_predict": 9, "input_extra": [{"text": "E", "filename": "a.py"}]})
        asked: Generate = worker.engine.submitted.get_nowait()
    named = {203: "<repo>", 204: "<sep>", 200: "<pre>", 201: "<suf>", 202: "<mid>"}
    text = "".join(named.get(token, chr(token)) for token in asked.prompt)
    assert text == "<repo>myproject\n<sep>a.py\nE<sep>filename\n<pre>abc<suf>yz<mid>"


async def test_extra_text_without_file_tokens_is_marked_as_a_snippet(generator: Worker) -> None:
    generator.engine.script = code
    await ask(generator, "/infill", {**GAP, "n_predict": 9, "input_extra": [{"text": "E"}]})
    asked: Generate = generator.engine.submitted.get_nowait()
    assert "".join(map(chr, asked.prompt)).startswith("\n\n--- snippet ---\n\nE\x01")


def lines(text: str) -> Callable[[Generate], list[list[Output]]]:
    """An engine that would go on for ever after these characters, a token each."""

    def script(request: Generate) -> list[list[Output]]:
        rid = request.request_id
        return [[Prefilled(rid, 9, 0)], *([Piece(rid, 0, character, 1)] for character in text)]

    return script


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\n    b\n  c\n", "a\n    b\n  "),
        ("a\n    b\nc", "a\n    b\n"),
        ("a\n\n", "a\n"),
        ("a\n\tb", "a\n\t"),
        ("  a\n     b\nc", "  a\n     b\n"),
    ],
)
async def test_a_gap_ends_at_the_first_line_that_is_indented_less(generator: Worker, text: str, kept: str) -> None:
    generator.engine.script = lines(text)
    answer = await ask(generator, "/infill", {**GAP, "n_indent": 4})
    assert (answer["content"], answer["stop_type"]) == (kept, "limit")
    asked: Generate = generator.engine.submitted.get_nowait()
    assert await generator.engine.cancelled.get() == asked.request_id


async def test_a_stream_that_ends_by_its_indentation_is_whole(generator: Worker) -> None:
    generator.engine.script = lines("a\nb")
    async with generator.post("/infill", {**GAP, "n_indent": 1, "stream": True}) as response:
        *chunks, last, done = events(await response.text())
    assert ("".join(chunk["content"] for chunk in chunks), last["stop_type"], done) == ("a\n", "limit", "[DONE]")


def test_a_gap_ends_at_the_first_line_break_after_its_time() -> None:
    body = decode_infill(json.dumps({**GAP, "t_max_predict_ms": 500}).encode(), LIMITS)
    times = iter((10.0, 10.2, 10.7))
    filling = NativeAnswer("m", body, lambda: next(times))
    filling.feed([Prefilled("r", 9, 0), Piece("r", 0, "a", 1), Piece("r", 0, "b\n", 1), Piece("r", 0, "c", 1)])
    assert not filling.finished
    filling.feed([Piece("r", 0, "d\ne", 1)])
    assert filling.finished
    assert json.loads(filling.answer())["content"] == "ab\ncd\ne"


async def test_a_gap_of_no_tokens_only_computes_the_prompt(generator: Worker) -> None:
    generator.engine.script = code
    answer = await ask(generator, "/infill", {**GAP, "n_predict": 0})
    assert (answer["content"], answer["tokens_evaluated"]) == ("", 9)
    assert generator.engine.submitted.get_nowait().max_tokens == 1
