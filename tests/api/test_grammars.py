"""Grammars that cost a worker more than they should be allowed to, and those that do not."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from backends.llama_cpp.structured import gbnf
from swapd.api import grammars, openai
from swapd.api.grammars import refuse_heavy
from swapd.errors import BadRequestError

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws # ((((
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def test_the_limits_are_the_embedded_workers() -> None:
    for name in ("MAX_NESTING", "MAX_REPEATED", "MAX_REPETITIONS", "MAX_STACKED"):
        assert getattr(grammars, name) == getattr(gbnf, name)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nested"),
        ('root ::= "a"{2001}', "2000 times"),
        ('root ::= "a"{1, 99999999999999999999}', "2000 times"),
        ('root ::= ("a"{0,1000}){5000,}', "2000 times"),
        ("root ::= " + '"a"? ' * 4001, "4000 parts"),
        ('root ::= "a"' + "*" * 9, "8 signs"),
        ('root ::= "a"' + "{0,2} " * 9, "8 signs"),
    ],
)
def test_one_that_is_heavy_is_refused_for_every_worker(grammar: str, why: str) -> None:
    for endpoint, fields in (
        (openai.Endpoint.COMPLETIONS, {"prompt": "x"}),
        (openai.Endpoint.CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": "x"}]}),
        (openai.Endpoint.INFILL, {"input_prefix": "x", "input_suffix": "y"}),
    ):
        with pytest.raises(BadRequestError, match=why) as refused:
            openai.check(endpoint, {"model": "m", "grammar": grammar, **fields})
        assert refused.value.param == "grammar"


@pytest.mark.parametrize(
    "grammar",
    [
        None,
        "",
        JSON,
        'root ::= "((((' + "(" * 100 + '"',
        "root ::= [(" + "(" * 100 + "]",
        'root ::= "{9999}" "\\"{9999}"',
    ],
)
def test_usual_ones_are_not_and_texts_and_classes_are_not_read(grammar: str | None) -> None:
    refuse_heavy(grammar)


HOSTILE = ['"', "[", "{", "{ ", "{1, ", "\\", "*", "* ", '"\\', "[\\", "(", "\t"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_looking_takes_no_time_whatever_is_in_it(piece: str) -> None:
    began_s = time.process_time()
    for grammar in ((piece * 65_536)[:65_536], piece + " " * 65_535, "{1," + " " * 65_532 + piece):
        with suppress(BadRequestError):
            refuse_heavy(grammar)
    assert time.process_time() - began_s < 0.5
