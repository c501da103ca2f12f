"""OpenAI's routes, and those that other servers added to its interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swapd import errors
from swapd.api import openai
from swapd.api.media import MediaBody
from swapd.api.openapi import answers
from swapd.api.openapi.operation import (
    ANYTHING,
    BINARY,
    BODY,
    EVENTS,
    FORM,
    HELD_BODY,
    JSON,
    NAMING,
    PASSING,
    RELAYED,
    STRING,
    Body,
    Dialect,
    Operation,
    Query,
    Schema,
    Shape,
)
from swapd.api.responses.request import ResponsesBody

REFUSED_THERE = "What the worker refuses or fails at has its own status and words."
_CHAT = {"model": "qwen3-8b", "messages": [{"role": "user", "content": "Hello"}]}
_EXAMPLES: Mapping[openai.Endpoint, Mapping[str, dict[str, Any]]] = {
    openai.Endpoint.CHAT_COMPLETIONS: {
        "chat": _CHAT,
        "stream": {**_CHAT, "stream": True, "max_tokens": 64, "temperature": 0.7},
        "tools": {
            **_CHAT,
            "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}],
        },
        "image": {
            "model": "gemma-3",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                    ],
                }
            ],
        },
    },
    openai.Endpoint.CHAT_INPUT_TOKENS: {"chat": _CHAT},
    openai.Endpoint.COMPLETIONS: {
        "text": {"model": "qwen3-8b", "prompt": "Once upon a time", "max_tokens": 16},
        "tokens": {"model": "qwen3-8b", "prompt": [1, 2, 3]},
    },
    openai.Endpoint.EMBEDDINGS: {
        "text": {"model": "bge-m3", "input": "a text"},
        "texts": {"model": "bge-m3", "input": ["one", "two"], "encoding_format": "base64", "dimensions": 256},
    },
    openai.Endpoint.RERANK: {"rerank": {"model": "bge-reranker", "query": "q", "documents": ["one", {"text": "two"}]}},
    openai.Endpoint.COMPLETION: {"text": {"model": "qwen3-8b", "prompt": ["Once", 42], "n_predict": 16}},
    openai.Endpoint.INFILL: {"gap": {"model": "qwen-coder", "input_prefix": "def f(", "input_suffix": "): pass"}},
    openai.Endpoint.TOKENIZE: {"text": {"model": "qwen3-8b", "content": "a text"}},
    openai.Endpoint.DETOKENIZE: {"tokens": {"model": "qwen3-8b", "tokens": [1, 2, 3]}},
    openai.Endpoint.APPLY_TEMPLATE: {"chat": _CHAT},
}
_SUMMARIES: Mapping[openai.Endpoint, tuple[str, Shape, bool]] = {
    openai.Endpoint.CHAT_COMPLETIONS: ("An answer to a conversation", answers.CHAT, True),
    openai.Endpoint.CHAT_INPUT_TOKENS: ("How many tokens a conversation has", answers.COUNTED, False),
    openai.Endpoint.COMPLETIONS: ("What follows a text", answers.CHAT, True),
    openai.Endpoint.EMBEDDINGS: ("Texts as vectors", answers.EMBEDDINGS, False),
    openai.Endpoint.RERANK: ("Texts in the order of how well they answer a question", answers.RERANKED, False),
    openai.Endpoint.COMPLETION: ("What follows a text, as llama-server tells it", ANYTHING, True),
    openai.Endpoint.INFILL: ("What fills a gap in a text", ANYTHING, True),
    openai.Endpoint.TOKENIZE: ("A text as tokens", ANYTHING, False),
    openai.Endpoint.DETOKENIZE: ("Tokens as a text", ANYTHING, False),
    openai.Endpoint.APPLY_TEMPLATE: ("A conversation as the prompt that it becomes", ANYTHING, False),
}
"""What each does, its answer, and whether that can be streamed."""
_LLAMA_SERVERS = frozenset((
    openai.Endpoint.COMPLETION, openai.Endpoint.INFILL, openai.Endpoint.TOKENIZE, openai.Endpoint.DETOKENIZE,
    openai.Endpoint.APPLY_TEMPLATE,
))  # fmt: skip
_FURTHER = "Fields that are not named here reach the worker as they are. "
_FORM: Schema = {
    "type": "object",
    "properties": {"model": STRING, "file": BINARY},
    "required": ["model"],
}


def operations() -> dict[tuple[str, str], Operation]:
    """By method and path."""
    made = {
        ("POST", path): _computing(endpoint)
        for endpoint in openai.Endpoint
        for path in (endpoint.value, *openai.ALSO_AT.get(endpoint, ()))
    }
    return made | _RESPONSES | _MODELS | _MEDIA


def _computing(endpoint: openai.Endpoint) -> Operation:
    summary, answer, streams = _SUMMARIES[endpoint]
    return Operation(
        dialect=Dialect.LLAMA_SERVER if endpoint in _LLAMA_SERVERS else Dialect.OPENAI,
        summary=summary,
        about=_FURTHER + REFUSED_THERE,
        body=Body(shape=openai.shape_of(endpoint), examples=_EXAMPLES[endpoint]),
        answers={JSON: answer, **({EVENTS: STRING} if streams else {})},
        errors=RELAYED,
        leases=True,
        passes=True,
    )


_STORED = frozenset((errors.NotFoundError,))
_RESPONSES = {
    ("POST", "/v1/responses"): Operation(
        dialect=Dialect.OPENAI,
        summary="An answer to items, which may go on from a stored response",
        about=_FURTHER + REFUSED_THERE,
        body=Body(
            shape=ResponsesBody,
            examples={
                "text": {"model": "qwen3-8b", "input": "Hello"},
                "items": {
                    "model": "qwen3-8b",
                    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
                    "store": False,
                },
            },
        ),
        answers={JSON: answers.RESPONSE, EVENTS: STRING},
        errors=RELAYED | {errors.PreviousResponseNotFoundError},
        leases=True,
        passes=True,
    ),
    ("GET", "/v1/responses/{id}"): Operation(
        dialect=Dialect.OPENAI,
        summary="A stored response of this client",
        query=(Query(name="stream", schema={"enum": ["false", "0"]}, about="A stored response is not streamed."),),
        answers={JSON: answers.RESPONSE},
        errors=_STORED,
    ),
    ("DELETE", "/v1/responses/{id}"): Operation(
        dialect=Dialect.OPENAI,
        summary="Forget a stored response of this client",
        answers={JSON: answers.DELETED},
        errors=_STORED,
    ),
}
_ALL_MODELS = Operation(
    dialect=Dialect.OPENAI,
    summary="All models that are listed, loaded or not",
    answers={JSON: answers.MODELS},
)
_MODELS = {
    ("GET", "/v1/models"): _ALL_MODELS,
    ("GET", "/models"): _ALL_MODELS,
    ("GET", "/v1/models/{id}"): Operation(
        dialect=Dialect.OPENAI,
        summary="One model",
        answers={JSON: answers.MODEL},
        errors=NAMING,
    ),
}


def _making(summary: str, body: Body, about: str) -> Operation:
    return Operation(
        dialect=Dialect.OPENAI,
        summary=summary,
        about=about,
        body=body,
        answers={"*/*": ANYTHING},
        errors=HELD_BODY | PASSING,
        leases=True,
        passes=True,
    )


def _form(summary: str) -> Operation:
    about = "The form goes to the worker as it comes, with the name that it knows the model by."
    return _making(summary, Body(shape=_FORM, kind=FORM, examples={}), about)


def _document(summary: str) -> Operation:
    examples = {"named": {"model": "sd-turbo", "prompt": "a llama"}}
    return _making(summary, Body(shape=MediaBody, examples=examples), _FURTHER)


def _question(summary: str) -> Operation:
    return Operation(
        dialect=Dialect.OPENAI,
        summary=summary,
        about="No model is loaded for it (409). The answer is the worker's.",
        query=(Query(name="model", schema=STRING, about="Which model."),),
        answers={"*/*": ANYTHING},
        errors=PASSING | {errors.ModelNotLoadedError},
        leases=True,
        passes=True,
    )


_MEDIA = {
    ("POST", "/v1/audio/transcriptions"): _form("Speech as text"),
    ("POST", "/v1/audio/translations"): _form("Speech as English text"),
    ("POST", "/v1/audio/speech"): _document("Text as speech"),
    ("POST", "/v1/audio/voices"): _document("What a worker does with voices"),
    ("GET", "/v1/audio/voices"): _question("The voices that a worker has"),
    ("POST", "/audioapi/v1/tasks/run"): _document("A task of audio.cpp's"),
    ("POST", "/sdapi/v1/txt2img"): _document("Images from a text, as stable-diffusion-webui has it"),
    ("POST", "/sdapi/v1/img2img"): _document("Images from images, as stable-diffusion-webui has it"),
    ("GET", "/sdapi/v1/loras"): _question("The adapters that a worker has"),
    ("POST", "/v1/images/generations"): _document("Images from a text"),
    ("POST", "/v1/images/edits"): _form("An image, changed"),
    ("POST", "/v1/images/variations"): _form("Images like another one"),
}
_UPSTREAM = Operation(
    dialect=Dialect.SWAPD,
    summary="Anything else that a model's worker offers",
    about=(
        "`target` is MODEL/PATH; the longest beginning that names a model is meant, and the rest with the query goes "
        "to its worker as it is, websockets too. GET, HEAD and OPTIONS load no model (409). The answer is the worker's."
    ),
    answers={"*/*": ANYTHING},
    errors=BODY | PASSING | {errors.ModelNotLoadedError, errors.ForeignPageError},
    leases=True,
    passes=True,
)
UPSTREAM = {("*", "/upstream/{target}"): _UPSTREAM}
