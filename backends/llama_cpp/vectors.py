"""Embeddings and reranking: what a client may send, the engine's request for it, and the answer.

Owns both endpoints' bodies, bounds and shapes; the order of a reranking prompt is the model's. Pure; blocking where
texts are tokenized or large answers encoded, so the server calls it off the event loop.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from backends.llama_cpp.engine.types import SpecialTokens
from backends.llama_cpp.errors import CONTEXT_EXCEEDED, RequestError
from backends.llama_cpp.prompts import check_known
from backends.llama_cpp.requests import Limits, TokenId, Tokens, decode, several
from backends.llama_cpp.sampling import INT32_MAX, Tokenizer

MAX_INPUTS = 2048
"""OpenAI's bound on the inputs of one embeddings request; the same for the documents of one reranking."""

_ENCODINGS = ("float", "base64")


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings. `input` takes the same four forms as a completion's prompt."""

    input: str | tuple[str | TokenId | Tokens, ...]
    encoding_format: str | None = None
    dimensions: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None


class Document(msgspec.Struct, frozen=True):
    """A document as an object, which Cohere's and Jina's clients may send; other fields of it do not count."""

    text: str


class RerankBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/rerank, as Jina and Cohere have it; with `texts` as text-embeddings-inference has it."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[tuple[str | Document, ...], Meta(min_length=1, max_length=MAX_INPUTS)] | None = None
    texts: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_INPUTS)] | None = None
    top_n: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None

    @property
    def passages(self) -> tuple[str, ...]:
        """The texts to be ranked, under whichever name."""
        found: Sequence[str | Document] = self.texts if self.texts is not None else self.documents or ()
        return tuple(one if isinstance(one, str) else one.text for one in found)


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(msgspec.Struct, frozen=True):
    index: int
    embedding: tuple[float, ...] | str
    object: str = "embedding"


class EmbeddingAnswer(msgspec.Struct, frozen=True):
    model: str
    data: Sequence[EmbeddingItem]
    usage: Usage
    object: str = "list"


class Ranked(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankAnswer(msgspec.Struct, frozen=True):
    model: str
    results: Sequence[Ranked]
    usage: Usage
    object: str = "list"


class Scored(msgspec.Struct, frozen=True):
    """A result in the shape of text-embeddings-inference."""

    index: int
    score: float
    text: str | UnsetType = UNSET


_embedding_decoder = msgspec.json.Decoder(EmbeddingBody)
_rerank_decoder = msgspec.json.Decoder(RerankBody)
_encoder = msgspec.json.Encoder()


def decode_embedding(data: bytes, limits: Limits) -> EmbeddingBody:
    """Check an embeddings body. Raises `RequestError` naming the field."""
    body = decode(_embedding_decoder, data, {})
    if body.encoding_format not in (None, *_ENCODINGS):
        raise RequestError("encoding_format must be float or base64", param="encoding_format")
    if body.dimensions is not None and body.dimensions > limits.n_embd:
        raise RequestError(
            f"dimensions is {body.dimensions}, but this model's vectors have {limits.n_embd}: ask for 1 to that many",
            param="dimensions",
        )
    return body


def decode_rerank(data: bytes) -> RerankBody:
    """Check a reranking body. Raises `RequestError` naming the field."""
    body = decode(_rerank_decoder, data, {})
    if (body.documents is None) == (body.texts is None):
        raise RequestError("documents is required (or texts, not both)", param="documents")
    return body


def embedding_inputs(body: EmbeddingBody, tokenizer: Tokenizer, limits: Limits) -> tuple[Tokens, ...]:
    """The tokens of every input, in order."""
    found = []
    inputs = several(body.input, "input", MAX_INPUTS)
    for index, one in enumerate(inputs):
        param = f"input[{index}]" if len(inputs) > 1 else "input"
        if isinstance(one, str):
            tokens = tuple(tokenizer.tokenize(one, add_special=True, parse_special=True)) if one else ()
        else:
            check_known(one, limits, param)
            tokens = one
        _check_length(tokens, limits, param)
        found.append(tokens)
    return tuple(found)


def rerank_inputs(
    body: RerankBody, tokenizer: Tokenizer, special: SpecialTokens, template: str | None, limits: Limits
) -> tuple[Tokens, ...]:
    """The prompt of the query with each document, in order (server-common.cpp format_prompt_rerank).

    `template` is the file's own text around `{query}` and `{document}`. Without one the two stand one after the other,
    with the beginning, end and separator tokens the vocabulary wants.
    """
    name = "documents" if body.texts is None else "texts"
    query = () if template else tuple(tokenizer.tokenize(body.query, add_special=False, parse_special=False))
    found = []
    for index, passage in enumerate(body.passages):
        if template:
            text = _filled(template, body.query, passage)
            tokens = tuple(tokenizer.tokenize(text, add_special=False, parse_special=True))
        else:
            document = tuple(tokenizer.tokenize(passage, add_special=False, parse_special=False))
            tokens = _pair(query, document, special)
        _check_length(tokens, limits, f"{name}[{index}]")
        found.append(tokens)
    return tuple(found)


def _filled(template: str, query: str, document: str) -> str:
    """The template with both texts in place; what looks like a placeholder within them stays."""
    return document.join(part.replace("{query}", query) for part in template.split("{document}"))


def _pair(query: Tokens, document: Tokens, special: SpecialTokens) -> Tokens:
    bos = (special.bos,) if special.add_bos else ()
    eos = (special.sep if special.eos is None else special.eos,) if special.add_eos else ()
    sep = (special.sep,) if special.add_sep else ()
    parts = (*bos, *query, *eos, *sep, *document, *eos)
    return tuple(token for token in parts if token is not None)


def _check_length(tokens: Tokens, limits: Limits, param: str) -> None:
    if not tokens:
        raise RequestError(f"{param} must not be empty", param=param)
    if len(tokens) > limits.n_input:
        raise RequestError(
            f"{param} has {len(tokens)} tokens, but this model takes {limits.n_input} at once: shorten it, or raise "
            "n_ubatch and n_ctx where the model's trained context allows",
            kind=CONTEXT_EXCEEDED,
            param=param,
            code="context_length_exceeded",
            details={"n_prompt_tokens": len(tokens), "n_ctx": limits.n_input},
        )


def shortened(vector: tuple[float, ...], dimensions: int | None) -> tuple[float, ...]:
    """The first `dimensions` of a vector, scaled to length 1 again: what Matryoshka-trained models allow."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    start = vector[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in start))
    return tuple(value / length for value in start) if length > 0 else start


def embedding_answer(
    model_id: str, vectors: Sequence[tuple[float, ...]], prompt_tokens: int, body: EmbeddingBody
) -> bytes:
    """The answer to an embeddings request. Base64 holds little-endian float32, as OpenAI's client expects."""
    data = []
    for index, vector in enumerate(vectors):
        values = shortened(vector, body.dimensions)
        data.append(EmbeddingItem(index, _base64(values) if body.encoding_format == "base64" else values))
    return _encoder.encode(EmbeddingAnswer(model_id, data, Usage(prompt_tokens, prompt_tokens)))


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def rerank_answer(model_id: str, vectors: Sequence[tuple[float, ...]], prompt_tokens: int, body: RerankBody) -> bytes:
    """The answer to a reranking request, the best first; equals keep the order they came in."""
    passages, scores = body.passages, [vector[0] for vector in vectors]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    if body.texts is not None:
        return _encoder.encode([Scored(i, scores[i], passages[i] if body.return_text else UNSET) for i in best])
    results = [Ranked(i, scores[i], Document(passages[i]) if body.return_documents else UNSET) for i in best]
    return _encoder.encode(RerankAnswer(model_id, results, Usage(prompt_tokens, prompt_tokens)))
