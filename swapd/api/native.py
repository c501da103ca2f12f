"""The shapes of requests that are not OpenAI's: reranking as Jina and Cohere have it, llama-server's own endpoints.

Owns the types and ranges every server of these endpoints shares; fields not named here pass through. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from swapd.api.llama_fields import LlamaFields
from swapd.errors import BadRequestError
from swapd.pool.status import ModelStatus

MAX_DOCUMENTS = 2048

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Token = Annotated[int, msgspec.Meta(ge=0)]
_Mixed = str | list[str | _Token]


class _Document(msgspec.Struct):
    text: str


class Rerank(msgspec.Struct, kw_only=True):
    """`texts` is text-embeddings-inference's name for `documents`."""

    model: _Name
    query: Annotated[str, msgspec.Meta(min_length=1)]
    documents: Annotated[list[str | _Document], msgspec.Meta(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    texts: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None


class _Extra(msgspec.Struct):
    text: str
    filename: str | None = None


class Completion(LlamaFields, kw_only=True):
    """`prompt` is one text, or texts and tokens that make one together."""

    model: _Name
    prompt: _Mixed
    stream: bool | None = None


class Infill(LlamaFields, kw_only=True):
    model: _Name
    input_prefix: _Mixed
    input_suffix: _Mixed
    input_extra: list[_Extra] | None = None
    prompt: str | None = None
    stream: bool | None = None


class Tokenize(msgspec.Struct, kw_only=True):
    model: _Name
    content: _Mixed
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class Detokenize(msgspec.Struct, kw_only=True):
    model: _Name
    tokens: list[_Token]


def check_rerank(body: Rerank) -> None:
    """Raise `BadRequestError` unless there is one list of documents."""
    if (body.documents is None) == (body.texts is None):
        raise BadRequestError("documents: this field is required (or texts, not both)", param="documents")


def props_document(model: ModelStatus) -> dict[str, Any]:
    """llama-server's GET /props, as far as it is known of a model without asking its worker. `n_ctx` is in tokens."""
    return {
        "default_generation_settings": {"n_ctx": model.n_ctx, "params": {}},
        "total_slots": model.slots * max(1, len(model.workers)),
        "model_alias": model.id,
        "modalities": {"vision": "image" in model.input_modalities, "audio": "audio" in model.input_modalities},
        "is_sleeping": model.state in ("unloaded", "asleep"),
    }


def slots_document(model: ModelStatus) -> list[dict[str, Any]]:
    """llama-server's GET /slots: how many of each worker's places are taken. There are none while nothing is loaded."""
    busy = [number < worker.running for worker in model.workers for number in range(model.slots)]
    return [{"id": number, "n_ctx": model.n_ctx, "is_processing": taken} for number, taken in enumerate(busy)]
