"""Answers that no type of the daemon's describes: what workers write, and documents in other servers' forms.

Each names what is always there. Fields may be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swapd.api.openapi.operation import STRING, Dialect, Schema

_INTEGER: Schema = {"type": "integer"}
_STRINGS: Schema = {"type": "array", "items": STRING}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}


def _object(required: Mapping[str, Schema], **further: Schema) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **further}, "required": list(required)}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


ERRORS: Mapping[Dialect, Schema] = {
    Dialect.OPENAI: _object(
        {
            "error": _object(
                {"message": STRING, "type": STRING, "param": _or_null(STRING), "code": _or_null(STRING)},
                n_prompt_tokens=_INTEGER,
                n_ctx=_INTEGER,
            )
        }
    ),
    Dialect.ANTHROPIC: _object(
        {"type": {"const": "error"}, "error": _object({"type": STRING, "message": STRING}, code=STRING)}
    ),
    Dialect.OLLAMA: _object({"error": STRING}),
}
"""The error objects. A dialect that has none of its own has OpenAI's."""

USAGE = _object({"prompt_tokens": _INTEGER}, completion_tokens=_INTEGER, total_tokens=_INTEGER)
CHAT = _object({"choices": _OBJECTS}, id=STRING, object=STRING, created=_INTEGER, model=STRING, usage=USAGE)
EMBEDDINGS = _object({"data": _OBJECTS}, object=STRING, model=STRING, usage=USAGE)
RERANKED = {"anyOf": [_object({"results": _OBJECTS}, model=STRING, usage=USAGE), _OBJECTS]}
COUNTED = _object({"input_tokens": _INTEGER})
RESPONSE = _object(
    {"id": STRING, "object": {"const": "response"}, "status": STRING, "output": _OBJECTS},
    model=STRING,
    usage=_or_null({"type": "object"}),
)
DELETED = _object({"id": STRING, "object": STRING, "deleted": {"type": "boolean"}})
MESSAGE = _object(
    {"id": STRING, "type": {"const": "message"}, "role": STRING, "content": _OBJECTS, "model": STRING},
    stop_reason=_or_null(STRING),
    usage={"type": "object"},
)

MODEL = _object(
    {
        "id": STRING,
        "object": {"const": "model"},
        "type": {"const": "model"},
        "display_name": STRING,
        "created": _INTEGER,
        "created_at": STRING,
        "owned_by": STRING,
        "aliases": _STRINGS,
        "state": STRING,
        "context_length": _or_null(_INTEGER),
        "max_input_tokens": _or_null(_INTEGER),
        "input_modalities": _STRINGS,
        "capabilities": _STRINGS,
    },
    name=STRING,
    description=STRING,
    metadata={"type": "object"},
    virtual={"type": "object"},
)
MODELS = _object(
    {"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}, "has_more": {"type": "boolean"}}
)

OLLAMA_CHAT = _object({"model": STRING, "created_at": STRING, "message": {"type": "object"}, "done": {}})
OLLAMA_TEXT = _object({"model": STRING, "created_at": STRING, "response": STRING, "done": {}})
OLLAMA_EMBED = _object({"model": STRING, "embeddings": {"type": "array"}})
OLLAMA_EMBEDDING = _object({"embedding": {"type": "array"}})
OLLAMA_MODELS = _object({"models": {"type": "array", "items": _object({"name": STRING, "model": STRING})}})
OLLAMA_MODEL = _object({"details": {"type": "object"}, "model_info": {"type": "object"}, "capabilities": _STRINGS})

PROPS = _object({"default_generation_settings": {"type": "object"}, "total_slots": _INTEGER})
SLOTS: Schema = {"type": "array", "items": _object({"id": _INTEGER})}
