"""Anthropic's routes, Ollama's, and what llama-server tells of itself."""

from __future__ import annotations

from swapd import errors
from swapd.api.anthropic.request import CountBody, MessagesBody
from swapd.api.ollama import request as ollama
from swapd.api.openapi import answers
from swapd.api.openapi.openai import REFUSED_THERE
from swapd.api.openapi.operation import (
    EVENTS,
    HELD_BODY,
    JSON,
    LINES,
    NAMING,
    PASSING,
    RELAYED,
    STRING,
    TEXT,
    Body,
    Dialect,
    Operation,
    Query,
    Shape,
)

_MESSAGES = {"model": "qwen3-8b", "messages": [{"role": "user", "content": "Hello"}]}
_NAME = {"name": "model"}
_NOT_OFFERED = frozenset((errors.NotOfferedError,))
"""Ollama's ways to change which models there are."""

_ANTHROPIC = {
    ("POST", "/v1/messages"): Operation(
        dialect=Dialect.ANTHROPIC,
        summary="An answer to a conversation",
        about=REFUSED_THERE,
        body=Body(
            shape=MessagesBody,
            examples={
                "message": {**_MESSAGES, "max_tokens": 64},
                "stream": {**_MESSAGES, "max_tokens": 64, "stream": True, "system": "Be short."},
            },
        ),
        answers={JSON: answers.MESSAGE, EVENTS: STRING},
        errors=RELAYED,
        leases=True,
        passes=True,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        dialect=Dialect.ANTHROPIC,
        summary="How many tokens a conversation has",
        about=REFUSED_THERE,
        body=Body(shape=CountBody, examples={"message": _MESSAGES}),
        answers={JSON: answers.COUNTED},
        errors=RELAYED,
        leases=True,
        passes=True,
    ),
}


def _ollamas(summary: str, body: Body, answer: Shape, *, streams: bool) -> Operation:
    return Operation(
        dialect=Dialect.OLLAMA,
        summary=summary,
        about=f"With nothing to compute the model is loaded, or with a `keep_alive` of 0 let go. {REFUSED_THERE}",
        body=body,
        answers={JSON: answer, **({LINES: STRING} if streams else {})},
        errors=RELAYED,
        leases=True,
        passes=True,
    )


_OLLAMA_COMPUTING = {
    ("POST", "/api/chat"): _ollamas(
        "An answer to a conversation",
        Body(
            shape=ollama.ChatBody,
            examples={
                "chat": {**_MESSAGES, "stream": False, "options": {"temperature": 0.2}, "keep_alive": "5m"},
                "load": {"model": "qwen3-8b"},
            },
            synonyms=_NAME,
        ),
        answers.OLLAMA_CHAT,
        streams=True,
    ),
    ("POST", "/api/generate"): _ollamas(
        "What follows a prompt",
        Body(
            shape=ollama.GenerateBody,
            examples={
                "prompt": {"model": "qwen3-8b", "prompt": "Hello", "think": "low"},
                "unload": {"name": "qwen3-8b:latest", "keep_alive": 0},
            },
            synonyms=_NAME,
        ),
        answers.OLLAMA_TEXT,
        streams=True,
    ),
    ("POST", "/api/embed"): _ollamas(
        "Texts as vectors",
        Body(
            shape=ollama.EmbedBody,
            examples={"texts": {"model": "bge-m3", "input": ["one", "two"]}},
            synonyms=_NAME,
        ),
        answers.OLLAMA_EMBED,
        streams=False,
    ),
    ("POST", "/api/embeddings"): _ollamas(
        "A text as a vector",
        Body(
            shape=ollama.EmbeddingsBody,
            examples={"text": {"model": "bge-m3", "prompt": "one"}},
            synonyms=_NAME,
        ),
        answers.OLLAMA_EMBEDDING,
        streams=False,
    ),
}
_NAMED = Body(shape=ollama.NameBody, examples={"model": {"model": "qwen3-8b"}, "name": {"name": "qwen3-8b:latest"}})


def _not_offered(summary: str) -> Operation:
    return Operation(
        dialect=Dialect.OLLAMA,
        summary=f"{summary}: not offered",
        about="swapd serves the models of its list, and nobody changes that but the list.",
        answers={},
        errors=_NOT_OFFERED,
    )


_OLLAMA_MODELS = {
    ("GET", "/"): Operation(
        dialect=Dialect.SWAPD,
        summary="A sign of life, in words that Ollama's clients look for; for browsers the web page",
        answers={TEXT: STRING, "text/html": STRING},
    ),
    ("GET", "/api/version"): Operation(
        dialect=Dialect.OLLAMA,
        summary="The version of Ollama whose interface this follows",
        answers={JSON: {"type": "object", "properties": {"version": STRING}, "required": ["version"]}},
    ),
    ("GET", "/api/tags"): Operation(
        dialect=Dialect.OLLAMA, summary="All models", answers={JSON: answers.OLLAMA_MODELS}
    ),
    ("GET", "/api/ps"): Operation(
        dialect=Dialect.OLLAMA, summary="The models that are loaded", answers={JSON: answers.OLLAMA_MODELS}
    ),
    ("POST", "/api/show"): Operation(
        dialect=Dialect.OLLAMA,
        summary="One model",
        body=_NAMED,
        answers={JSON: answers.OLLAMA_MODEL},
        errors=HELD_BODY | NAMING,
    ),
    ("POST", "/api/pull"): Operation(
        dialect=Dialect.OLLAMA,
        summary="Whether a model is in the list: nothing is downloaded",
        body=_NAMED,
        answers={LINES: STRING},
        errors=HELD_BODY | NAMING | _NOT_OFFERED,
    ),
    ("POST", "/api/push"): _not_offered("Publish a model"),
    ("POST", "/api/create"): _not_offered("Make a model"),
    ("POST", "/api/copy"): _not_offered("Copy a model"),
    ("DELETE", "/api/delete"): _not_offered("Delete a model"),
    ("POST", "/api/blobs/{digest}"): _not_offered("Upload a file"),
    ("HEAD", "/api/blobs/{digest}"): _not_offered("Whether a file is there"),
}
_MODEL = Query(name="model", schema=STRING, about="Which model; may be left out where there is one alone.")


def _asking(summary: str, answer: Shape) -> Operation:
    return Operation(
        dialect=Dialect.LLAMA_SERVER,
        summary=summary,
        about="No model is loaded for it. Where the worker is a llama-server, the answer is its own (409 without one).",
        query=(_MODEL,),
        answers={JSON: answer},
        errors=PASSING | {errors.ModelNotLoadedError},
        passes=True,
    )


_LLAMA_SERVER = {
    ("GET", "/props"): _asking("llama-server's settings of a model", answers.PROPS),
    ("GET", "/slots"): _asking("How many of a model's places are taken", answers.SLOTS),
}


def operations() -> dict[tuple[str, str], Operation]:
    """By method and path."""
    return _ANTHROPIC | _OLLAMA_COMPUTING | _OLLAMA_MODELS | _LLAMA_SERVER
