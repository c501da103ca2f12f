"""The sampler settings at the edge: which are taken, which are refused by name and range, and what they come to."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import msgspec
import pytest
from worker_doubles import CharTokenizer

from backends.llama_cpp.engine.stages import check_settings
from backends.llama_cpp.engine.types import DEFAULT_STAGES, Sampling, Stage
from backends.llama_cpp.errors import RequestError
from backends.llama_cpp.requests import decode
from backends.llama_cpp.sampling import MAX_BIASES, SamplingBody, sampling

N_VOCAB = 1000
_decoder = msgspec.json.Decoder(SamplingBody)


def taken(**fields: object) -> Sampling:
    return sampling(decode(_decoder, json.dumps(fields).encode(), {}), N_VOCAB, CharTokenizer())


def test_what_is_absent_or_null_has_llama_cpps_default() -> None:
    assert taken() == Sampling()
    assert taken(**{field.name: None for field in msgspec.structs.fields(SamplingBody)}) == Sampling()
    assert asdict(Sampling()) == {
        "temperature": 0.8,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "min_keep": 0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 64,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ("\n", ":", '"', "*"),
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "samplers": DEFAULT_STAGES,
        "seed": None,
        "logit_bias": (),
        "ignore_eos": False,
    }


RANGES: list[tuple[str, float, float]] = [
    ("temperature", 0, 100),
    ("dynatemp_range", 0, 100),
    ("dynatemp_exponent", 0, 100),
    ("top_k", -1, 2**31 - 1),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("typical_p", 0, 1),
    ("top_n_sigma", -1, 100),
    ("xtc_probability", 0, 1),
    ("xtc_threshold", 0, 1),
    ("min_keep", 0, 2**31 - 1),
    ("repeat_penalty", 0.01, 100),
    ("repeat_last_n", -1, 2**31 - 1),
    ("frequency_penalty", -2, 2),
    ("presence_penalty", -2, 2),
    ("dry_multiplier", 0, 100),
    ("dry_base", 1, 100),
    ("dry_allowed_length", 0, 2**31 - 1),
    ("dry_penalty_last_n", -1, 2**31 - 1),
    ("mirostat", 0, 2),
    ("mirostat_tau", 0, 100),
    ("mirostat_eta", 0, 10),
    ("adaptive_target", -100, 1),
    ("adaptive_decay", 0, 0.99),
    ("seed", -(2**63), 2**63 - 1),
]


def test_every_number_has_its_row_in_the_table() -> None:
    numbers = {name for name, value in asdict(Sampling()).items() if isinstance(value, int | float)}
    assert {name for name, _, _ in RANGES} == numbers - {"ignore_eos"} | {"seed"}


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_a_number_is_taken_within_its_range_and_refused_by_name_beyond(name: str, low: float, high: float) -> None:
    for value in (low, high):
        check_settings(taken(**{name: value}))
    step = 1 if isinstance(low, int) and isinstance(high, int) and high > 100 else 0.001
    for value in (low - step, high + step, "1", True, [], {}):
        with pytest.raises(RequestError, match=f"^{name}: ") as refusal:
            taken(**{name: value})
        assert (refusal.value.status, refusal.value.param) == (400, name)


@pytest.mark.parametrize("name", ["temperature", "top_p", "dry_base", "mirostat_tau", "logit_bias"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_number_is_no_json(name: str, number: str) -> None:
    value = f'{{"1": {number}}}' if name == "logit_bias" else number
    with pytest.raises(RequestError):
        sampling(decode(_decoder, f'{{"{name}": {value}}}'.encode(), {}), N_VOCAB, CharTokenizer())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ignore_eos": "no"}, "ignore_eos"),
        ({"top_k": 1.5}, "top_k"),
        ({"mirostat": 1.5}, "mirostat"),
        ({"dry_sequence_breakers": "x"}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers[0]"),
        ({"dry_sequence_breakers": ["a", "b" * 41]}, "dry_sequence_breakers[1]"),
        ({"dry_sequence_breakers": ["x"] * 33}, "dry_sequence_breakers"),
        ({"samplers": 5}, "samplers"),
        ({"samplers": [5]}, "samplers[0]"),
        ({"samplers": ["top_q"]}, "samplers"),
        ({"samplers": ["infill"]}, "samplers"),
        ({"samplers": "kz"}, "samplers"),
        ({"samplers": "kk"}, "samplers"),
        ({"samplers": ["top_k", "top-k"]}, "samplers"),
    ],
)
def test_other_bad_settings_are_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        taken(**fields)
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert refusal.value.message.startswith(param)


def test_settings_come_through_as_they_were_sent() -> None:
    fields = {
        "temperature": 0,
        "top_k": 1,
        "xtc_probability": 0.5,
        "dry_sequence_breakers": ["\n\n", "é"],
        "mirostat": 2,
        "ignore_eos": True,
    }
    assert taken(**fields) == Sampling(
        temperature=0.0,
        top_k=1,
        xtc_probability=0.5,
        dry_sequence_breakers=("\n\n", "é"),
        mirostat=2,
        ignore_eos=True,
    )
    assert taken(dry_sequence_breakers=[]).dry_sequence_breakers == ()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("edskypmxt", DEFAULT_STAGES),
        ("a", (Stage.ADAPTIVE_P,)),
        ("", ()),
        ([], ()),
        (["min_p", "temperature"], (Stage.MIN_P, Stage.TEMPERATURE)),
        (["Min-P", "temp", "nucleus", "typ"], (Stage.MIN_P, Stage.TEMPERATURE, Stage.TOP_P, Stage.TYPICAL_P)),
        (["topk", "top_n_sigma", "typ_p", "adaptive_p"], None),
        ([stage.value for stage in DEFAULT_STAGES], DEFAULT_STAGES),
    ],
)
def test_the_order_is_given_by_names_or_by_letters(asked: object, expected: tuple[Stage, ...] | None) -> None:
    expected = expected or (Stage.TOP_K, Stage.TOP_N_SIGMA, Stage.TYPICAL_P, Stage.ADAPTIVE_P) if asked else ()
    assert taken(samplers=asked).samplers == expected


@pytest.mark.parametrize(("seed", "expected"), [(-1, None), (2**32 - 1, None), (-2, 2**32 - 2), (2**40 + 3, 3), (0, 0)])
def test_seeds_wrap_to_llama_cpps_32_bits_and_its_random_seed_is_none(seed: int, expected: int | None) -> None:
    assert taken(seed=seed).seed == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"1": False, "2": -100, "3": 1.5, "999": -200}, ((1, -math.inf), (2, -math.inf), (3, 1.5), (999, -math.inf))),
        ([[1, False], [2, -100], [3, 1.5]], ((1, -math.inf), (2, -math.inf), (3, 1.5))),
        # A text means every token of it, once.
        ({"aba": 2}, ((97, 2.0), (98, 2.0))),
        ([["ab", 2], [97, 1]], ((97, 2.0), (98, 2.0), (97, 1.0))),
        # Digits are an id in an object and a text in a list.
        ({"65": 1}, ((65, 1.0),)),
        ([["65", 1]], ((54, 1.0), (53, 1.0))),
        ({" 65": 1}, ((32, 1.0), (54, 1.0), (53, 1.0))),
        ({}, ()),
        ([], ()),
    ],
)
def test_a_bias_is_given_by_token_or_by_text_in_an_object_or_a_list(
    asked: object, expected: tuple[tuple[int, float], ...]
) -> None:
    assert taken(logit_bias=asked).logit_bias == expected


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"1000": 1}, "logit_bias"),
        ({"-1": 1}, "logit_bias"),
        ({"9" * 400: 1}, "logit_bias"),
        ({"1": True}, "logit_bias"),
        ({"": 1}, "logit_bias"),
        ({"x" * 257: 1}, "logit_bias"),
        ({"1": 101}, "logit_bias[...]"),
        ({"1": "x"}, "logit_bias[...]"),
        ({"1": None}, "logit_bias[...]"),
        ([[1000, 1]], "logit_bias"),
        ([[-1, 1]], "logit_bias"),
        ([["", 1]], "logit_bias"),
        ([[1, True]], "logit_bias"),
        ([1, 2], "logit_bias[0]"),
        ([[1]], "logit_bias[0]"),
        ([[1, 2, 3]], "logit_bias[0]"),
        ([[1.5, 2]], "logit_bias[0][0]"),
        ([[1, -2e6]], "logit_bias[0][1]"),
        ([{"token": 1, "bias": 2}], "logit_bias[0]"),
        ({str(token): 1 for token in range(MAX_BIASES + 1)}, "logit_bias"),
        ([["".join(map(chr, range(256))), 1]] * 17, "logit_bias"),
        (5, "logit_bias"),
        ("x", "logit_bias"),
    ],
)
def test_a_bias_on_what_is_no_token_or_beyond_its_range_is_refused(asked: object, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        taken(logit_bias=asked)
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert refusal.value.message.startswith("logit_bias")
    assert len(refusal.value.message) < 300
