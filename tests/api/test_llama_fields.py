"""llama.cpp's own fields at their bounds, and those that no worker gets."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from backends.base import Settings
from backends.llama_cpp.sampling import SamplingBody
from swapd.api import openai
from swapd.api.llama_fields import DROPPED, LlamaFields
from swapd.config.schema import Model, Params
from swapd.errors import BadRequestError

BODIES: dict[openai.Endpoint, dict[str, Any]] = {
    openai.Endpoint.CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": "x"}]},
    openai.Endpoint.COMPLETIONS: {"prompt": "x"},
    openai.Endpoint.COMPLETION: {"prompt": "x"},
    openai.Endpoint.INFILL: {"input_prefix": "x", "input_suffix": "y"},
}
NUMBER_TYPES = (msgspec.inspect.IntType, msgspec.inspect.FloatType)


def number_in(kind: Any) -> Any:
    """The number among the alternatives of a field's type, if there is one."""
    return next((one for one in getattr(kind, "types", ()) if isinstance(one, NUMBER_TYPES)), None)


def numbers(struct: type) -> dict[str, Any]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    found = {field.name: number_in(field.type) for field in info.fields}
    return {name: number for name, number in found.items() if number is not None}


NUMBERS = numbers(LlamaFields)


def asked(endpoint: openai.Endpoint, **fields: Any) -> openai.Asked:
    return openai.read(endpoint, json.dumps({"model": "m", **BODIES[endpoint], **fields}).encode())


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_that_count(endpoint: openai.Endpoint, name: str) -> None:
    kind = NUMBERS[name]
    assert kind.ge is not None
    assert kind.le is not None
    whole = isinstance(kind, msgspec.inspect.IntType)
    for value in (kind.ge, kind.le, None):
        assert asked(endpoint, **{name: value}).fields[name] == value
    step = 1 if whole else 1e-6
    wrong: list[Any] = [kind.ge - step, kind.le + step, "1", [1], {}, True, 2**63, -(2**63), 1e300]
    for value in wrong + ([0.5] if whole else []):
        with pytest.raises(BadRequestError) as refused:
            asked(endpoint, **{name: value})
        assert refused.value.param == name


def test_what_the_embedded_worker_takes_is_not_refused_before_it() -> None:
    """Its own ranges are as wide or narrower, but for bounds that OpenAI's dialect has for all."""
    shared = [(NUMBERS[name], theirs, name) for name, theirs in numbers(SamplingBody).items() if name in NUMBERS]
    assert len(shared) > 15
    for own, theirs, name in shared:
        assert own.ge <= theirs.ge, name
        assert own.le >= theirs.le, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grammar", "x" * (64 * 1024 + 1)),
        ("samplers", "k" * 65),
        ("samplers", ["top_k"] * 65),
        ("samplers", [1]),
        ("dry_sequence_breakers", ["x"] * 33),
        ("json_schema", "x"),
        ("cache_prompt", 1),
        ("ignore_eos", "false"),
    ],
)
def test_what_has_a_size_is_bounded_too(name: str, value: Any) -> None:
    with pytest.raises(BadRequestError, match=name):
        asked(openai.Endpoint.COMPLETIONS, **{name: value})


def test_fields_about_a_workers_insides_are_taken_out_unless_the_list_sets_them() -> None:
    request = asked(openai.Endpoint.COMPLETIONS, **dict.fromkeys(DROPPED, -5), other=1)
    plain = Model(id="m", settings=Settings())
    assert json.loads(openai.rewrite(request, plain).body) == {"model": "m", "prompt": "x", "other": 1}
    setting = Model(id="m", settings=Settings(), params=Params(set={"id_slot": 0}))
    assert json.loads(openai.rewrite(request, setting).body)["id_slot"] == 0
