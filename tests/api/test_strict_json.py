import contextlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.api.strict_json import MAX_DEPTH, parse_object
from swapd.errors import BadRequestError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=5), st.booleans())
def test_whatever_json_can_say_comes_back_the_same(value: dict[str, object], escaped: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")) == value


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_bad_request(body: bytes) -> None:
    with contextlib.suppress(BadRequestError):
        parse_object(body)


def test_broken_bodies_raise_nothing_but_a_bad_request() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    whole = b'{"a": [1, -2.5e3, {"b": "x\\n\\u00e9\\ud83d\\ude00"}, null, true], "c": {"d": []}}'
    for _ in range(3000):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.choice(b'{}[]",:\\0\x00\xff')
        with contextlib.suppress(BadRequestError):
            parse_object(bytes(broken))


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ('{"a":1,"a":2}', "a", "twice"),
        ('{"a":[{"b":{"c":1,"c":1}}]}', "a[0].b.c", "twice"),
        ('{"a":NaN}', "a", "NaN"),
        ('{"a":[0,-Infinity]}', "a[1]", "-Infinity"),
        ('{"a":1e400}', "a", "too large"),
        ('{"a":18446744073709551616}', "a", "64 bits"),
        ('{"a":-9223372036854775809}', "a", "64 bits"),
        ('{"a":' + "9" * 100_000 + "}", "a", "64 bits"),
        ('"text"', None, "a string"),
        ("[]", None, "an array"),
        ("null", None, "null"),
        ("NaN", None, "NaN"),
        ("", None, "char 0"),
        ('{"a":1}x', None, "line 1 column 8"),
        ('{"a":"\n"}', None, "control character"),
        ("\ufeff{}", None, "BOM"),
        (r'{"a":"\ud800"}', None, "surrogate"),
        (r'{"\udfff":1}', None, "surrogate"),
    ],
)
def test_a_refusal_says_where_and_why(body: str, param: str | None, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_object(body.encode())
    assert caught.value.param == param
    assert message in caught.value.message


def test_invalid_utf8_names_the_byte() -> None:
    with pytest.raises(BadRequestError, match="byte 6"):
        parse_object(b'{"a":"\xff"}')


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_depth_is_bounded_exactly_and_without_recursion(opening: str) -> None:
    levels = opening.count("[") + opening.count("{")
    closing = {"[": "]", '{"a":': "}", '[{"a":': "}]"}[opening]

    def nested(times: int) -> bytes:
        return ('{"k":' + opening * times + "1" + closing * times + "}").encode()

    assert parse_object(nested((MAX_DEPTH - 1) // levels))
    for times in ((MAX_DEPTH - 1) // levels + 1, 5_000, 200_000):
        with pytest.raises(BadRequestError, match=f"deeper than {MAX_DEPTH}"):
            parse_object(nested(times))


@pytest.mark.parametrize("text", ["[" * 500, '\\"[[', "\\\\", '\\\\\\"' + "{" * 100])
def test_brackets_inside_strings_do_not_count(text: str) -> None:
    body = '{"a":"' + text + '"}'
    assert parse_object(body.encode()) == json.loads(body)
