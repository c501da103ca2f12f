"""Random schemas on real models: every answer that comes to its end is valid, alone, in batches and in choices."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from support.engine_driver import Answer, Driver, chat_tokens, load, settings_for

from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Constraint, Finish, Generate, Sampling
from backends.llama_cpp.structured.schema import enforceable

WORDS = ("a", "b c", "größe", 'd"e', "n\n", "名前", "$ref", "type")
PATTERNS = ("^[a-c]{1,4}$", "^[A-Z][0-9]{2}(-[0-9])?$", "[0-9]", "^(x|yy|z{3})$", r"^\w+@\w+$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "duration", "email")


class Schemas:
    """Draws schemas that have short answers. Strings are bounded: a random model does not end them by itself."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._defs: dict[str, Any] = {}

    def document(self) -> dict[str, Any]:
        schema = self.one(0)
        return {**schema, "$defs": self._defs} if self._defs else schema

    def one(self, depth: int) -> dict[str, Any]:
        kinds = [self.text, self.whole, self.number, self.choice, self.plain]
        if depth < 3:
            kinds += [self.object, self.object, self.array, self.any_of, self.all_of, self.one_of, self.reference]
        return self._rng.choice(kinds)(depth)

    def text(self, _depth: int) -> dict[str, Any]:
        least = self._rng.randint(0, 3)
        bounded = {"minLength": least, "maxLength": least + self._rng.randint(0, 4)}
        more = self._rng.choice(
            (bounded, {"pattern": self._rng.choice(PATTERNS), "maxLength": 8}, {"format": self._rng.choice(FORMATS)})
        )
        return {"type": "string", **more}

    def whole(self, _depth: int) -> dict[str, Any]:
        least = self._rng.randint(-50, 50)
        made = {"type": "integer", "minimum": least, "maximum": least + self._rng.randint(0, 1000)}
        return (
            {**made, "multipleOf": self._rng.randint(1, 9), "maximum": least + 1000}
            if self._rng.random() < 0.3
            else made
        )

    def number(self, _depth: int) -> dict[str, Any]:
        low = round(self._rng.uniform(-9, 9), 1)
        return {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + self._rng.randint(1, 9)}

    def choice(self, _depth: int) -> dict[str, Any]:
        return {"enum": self._rng.sample([*WORDS, 1, 2.5, True, None, [1], {"k": "v"}], self._rng.randint(1, 4))}

    def plain(self, _depth: int) -> dict[str, Any]:
        return self._rng.choice(
            ({"type": "boolean"}, {"type": ["null", "boolean"]}, {"const": self._rng.choice(WORDS)})
        )

    def object(self, depth: int) -> dict[str, Any]:
        keys = self._rng.sample(WORDS, self._rng.randint(1, 3))
        made: dict[str, Any] = {"type": "object", "properties": {key: self.one(depth + 1) for key in keys}}
        made["required"] = [key for key in keys if self._rng.random() < 0.7]
        if self._rng.random() < 0.5:
            made["additionalProperties"] = False
        return made

    def array(self, depth: int) -> dict[str, Any]:
        least = self._rng.randint(0, 2)
        made: dict[str, Any] = {"type": "array", "minItems": least, "maxItems": least + 1, "items": self.one(depth + 1)}
        if self._rng.random() < 0.3:
            made["prefixItems"] = [self.one(depth + 1)]
        return made

    def any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.one(depth + 1) for _ in range(self._rng.randint(1, 3))]}

    def one_of(self, depth: int) -> dict[str, Any]:
        options = []
        for word in self._rng.sample(WORDS, 2):
            properties = {"kind": {"const": word}, "value": self.one(depth + 1)}
            options.append({"type": "object", "properties": properties, "required": ["kind", "value"]})
        return {"oneOf": options}

    def all_of(self, depth: int) -> dict[str, Any]:
        parts = [
            {"type": "object", "properties": {key: self.one(depth + 1)}, "required": [key]}
            for key in self._rng.sample(WORDS, 2)
        ]
        return {"allOf": parts, "additionalProperties": True}

    def reference(self, depth: int) -> dict[str, Any]:
        name = f"d{len(self._defs)}"
        self._defs[name] = {}
        self._defs[name] = self.one(depth + 1)
        return {"$ref": f"#/$defs/{name}"}


def request(name: str, schema: dict[str, Any], prompt: tuple[int, ...], seed: int, **more: Any) -> Generate:
    constraint = Constraint(f"start: %json {enforceable(schema, 'schema')}")
    hot = Sampling(temperature=1.3, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
    return Generate(name, prompt, hot, **{"max_tokens": 400, "constraint": constraint, **more})


def valid(schema: dict[str, Any], answer: Answer) -> int:
    """How many choices came to their end, each of them valid."""
    assert answer.ended is not None
    assert answer.ended.error is None, (answer.ended.error, schema)
    ended = [index for index, finish in answer.finishes.items() if finish is Finish.STOP]
    for index in ended:
        jsonschema.validate(json.loads(answer.texts[index]), schema)
    return len(ended)


@pytest.mark.parametrize("block", range(10))
def test_random_schemas_are_followed_by_a_random_model_in_batches_and_choices(tiny: Model, block: int) -> None:
    seeds = range(8 * block, 8 * block + 8)
    schemas = {f"r{seed}": Schemas(seed).document() for seed in seeds}
    requests = [
        request(name, schema, (30, 31), int(name[1:]), n=1 + int(name[1:]) % 3) for name, schema in schemas.items()
    ]
    free = Generate("free", (30, 31), Sampling(temperature=1.0, seed=1), max_tokens=100)
    answers = Driver(tiny, 8).run(*requests, free)
    ended = sum(valid(schema, answers[name]) for name, schema in schemas.items())
    assert ended >= 8


def test_random_schemas_are_followed_by_a_real_model() -> None:
    model = load(settings_for(n_ctx=1024, n_parallel=4, prefix_slots=0))
    try:
        schemas = {f"r{seed}": Schemas(seed).document() for seed in (101, 102, 103, 104)}
        prompt = chat_tokens(model, "Say something in JSON.")
        requests = [request(name, schema, prompt, 7, max_tokens=80) for name, schema in schemas.items()]
        answers = Driver(model, 4).run(*requests)
        assert sum(valid(schema, answers[name]) for name, schema in schemas.items()) >= 2
    finally:
        model.close()
