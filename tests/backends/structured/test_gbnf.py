"""GBNF: what it is taken to mean is what llama.cpp takes it to mean, and what is too much is refused with its place."""

from __future__ import annotations

import ctypes
import itertools
import random
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from backends.llama_cpp.engine.grammars import GrammarError as CompileError
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.structured.gbnf import MAX_GRAMMAR_CHARS, GrammarError
from backends.llama_cpp.structured.gbnf_lark import LARK_ROOT, to_lark

ALPHABET = "abé"
TEXTS = ["".join(letters) for length in range(5) for letters in itertools.product(ALPHABET, repeat=length)]


def no_token(_text: str) -> None:
    return None


def lark(grammar: str) -> str:
    return f"start: {LARK_ROOT}\n{to_lark(grammar, no_token)}"


def follows(tiny: Model, grammar: str, text: str) -> bool:
    """Whether the text is one that the grammar allows, whole."""
    matcher = tiny.grammars.matcher(lark(grammar))
    for byte in text.encode():
        token = byte_token(tiny, byte)
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return matcher.complete or matcher.allows(2)


def byte_token(tiny: Model, byte: int) -> int:
    return next(token for token in range(17, 17 + 256) if tiny.piece(token) == bytes([byte]))


class Reference:
    """llama.cpp's own sampler for a grammar."""

    def __init__(self, tiny: Model, sampler: Any) -> None:
        self._model = tiny
        self._sampler = sampler
        self._one = (llama.llama_token_data * 1)()

    def follows(self, text: str) -> bool:
        sampler = llama.llama_sampler_clone(self._sampler)
        try:
            for byte in text.encode():
                token = byte_token(self._model, byte)
                if not self._allows(sampler, token):
                    return False
                llama.llama_sampler_accept(sampler, token)
            return self._allows(sampler, 2)
        finally:
            llama.llama_sampler_free(sampler)

    def _allows(self, sampler: Any, token: int) -> bool:
        self._one[0].id, self._one[0].logit = token, 0.0
        candidates = llama.llama_token_data_array(data=self._one, size=1, selected=-1, sorted=False)
        llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
        return bool(np.isfinite(self._one[0].logit))

    def close(self) -> None:
        llama.llama_sampler_free(self._sampler)


def reference_for(tiny: Model, grammar: str) -> Reference | None:
    sampler: Any = llama.llama_sampler_init_grammar(tiny._vocab, grammar.encode(), b"root")
    return Reference(tiny, sampler) if sampler else None


def random_grammar(rng: random.Random) -> str:
    """Rules that refer only to later ones or, at their end, to themselves: llama.cpp takes no left recursion."""

    def part(rule: int, depth: int) -> str:
        kind = rng.randrange(8 if depth < 2 else 4)
        if kind == 0:
            return '"' + "".join(rng.choices(ALPHABET, k=rng.randint(1, 2))) + '"'
        if kind == 1:
            return rng.choice(["[a-b]", "[^a]", "[é]", ".", "[ab]", r"[\u00e9]", r"[^a-b]", r'"\x61"'])
        if kind in (2, 3):
            return f"r{rng.randint(rule + 1, 3)}" if rule < 3 else '"b"'
        if kind == 4:
            return f"({alternatives(rule, depth + 1)})"
        return part(rule, depth + 1) + rng.choice(["*", "+", "?", "{2}", "{1,2}", "{0,3}", "{1,}"])

    def alternatives(rule: int, depth: int) -> str:
        several = [" ".join(part(rule, depth) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 2))]
        return " | ".join(several)

    lines = []
    for rule in range(4):
        body = alternatives(rule, 0)
        if rule and rng.random() < 0.4:
            body = rng.choice([f'"a" r{rule} | {body}', f"({body} r{rule})?" if rng.random() < 0.3 else body])
        lines.append(f"{'root' if rule == 0 else f'r{rule}'} ::= {body}")
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_grammar_allows_what_llama_cpp_allows(tiny: Model, seed: int) -> None:
    rng = random.Random(seed)
    grammars = (random_grammar(rng) for _ in range(100))
    # It takes no repetition of what may be empty, for one.
    grammar, reference = next((one, made) for one in grammars if (made := reference_for(tiny, one)) is not None)
    for text in rng.sample(TEXTS, 40):
        assert follows(tiny, grammar, text) is reference.follows(text), f"{text!r} of\n{grammar}"
    reference.close()


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= word "x"\nword ::= [a-z]+', ["abx", "xx"], ["x", "ab"]),
        ('root ::= "ab" "c" | [a-z] [a-z] "d"', ["abc", "abd", "zzd"], ["zzc"]),
        ('root ::= ws "."\nws ::= ([ \\t\\n] ws)?', [".", "  \n."], ["x."]),
        ('root ::= item | item "," root\nitem ::= "a" | "b"', ["a", "a,b,a"], ["a,", ","]),
        ('root ::= root "x" | "y"', ["y", "yxx"], ["x"]),
        ('root ::= "a" | # a comment\n  "b"', ["a", "b"], ["b#"]),
        ('# first\n\nroot ::= ("a" |\n "b")\n', ["a", "b"], [""]),
        (r'root ::= "\"\\\n\t" [\]\[\-] "\u00e9\U0001F98A"', ['"\\\n\t]é🦊', '"\\\n\t-é🦊'], ['"\\\n\txé🦊']),
        ('root ::= ""', [""], ["a"]),
        ("root ::= [^\\n]{2,3}", ["ab", "éé🦊"], ["a", "abcd", "a\n"]),
        ("root ::= [a-]", ["a", "-"], ["b"]),
    ],
)
def test_grammars_mean_what_they_say(tiny: Model, grammar: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not follows(tiny, grammar, text)] == []
    assert [text for text in bad if follows(tiny, grammar, text)] == []


def test_a_rule_that_ends_in_itself_goes_on_for_thousands_of_rounds(tiny: Model) -> None:
    matcher = tiny.grammars.matcher(lark('root ::= ws "x"\nws ::= ([ ] ws)?'))
    space = byte_token(tiny, ord(" "))
    for _ in range(5000):
        matcher.accept(space)
    assert matcher.allows(byte_token(tiny, ord("x")))


def test_parentheses_up_to_the_limit_compile(tiny: Model) -> None:
    grammar = "root ::= " + "(" * 64 + '"a"' + ' "b"?)' * 64
    assert follows(tiny, grammar, "a" + "b" * 64)
    assert not follows(tiny, grammar, "a" + "b" * 65)


def test_a_token_is_named_by_number_or_by_text(tiny: Model) -> None:
    grammar = to_lark("root ::= <|im_start|> !<[5]> [a]", lambda text: 1 if text == "<|im_start|>" else None)
    matcher = tiny.grammars.matcher(f"start: {LARK_ROOT}\n{grammar}")
    assert [token for token in range(10) if matcher.allows(token)] == [1]
    matcher.accept(1)
    assert not matcher.allows(5)
    assert matcher.allows(6)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "no rule named root"),
        ('other ::= "a"', "no rule named root"),
        ("root ::= missing", "root refers to missing, which is not defined"),
        ('root ::= "a', "line 1, column 12: the grammar ends inside a literal"),
        ('root ::= "a"\nb ::= [a', "line 2, column 9: the grammar ends inside"),
        ("root ::= []", "a class of characters is empty"),
        ("root ::= [z-a]", "the wrong way round"),
        ('root ::= ("a"', r"\) is missing"),
        ('root ::= "a")', "the rule does not end here"),
        ('root = "a"', "::= is missing"),
        ("root ::= " + " ".join(["[a-z]?"] * 4001), "more than 4000 parts are repeated"),
        ("root ::= *", "there is nothing to repeat"),
        ('root ::= "a"' + "*" * 9, "repeated again and again"),
        ('root ::= "a"{2001}', "2001 repetitions are more than 2000"),
        ('root ::= "a"{3,2}', "asks for fewer than at least"),
        ('root ::= "a"{', "a number of repetitions is missing"),
        (r'root ::= "\q"', r"\\q is no escape"),
        (r'root ::= "\x4"', r"\\x is no escape"),
        (r'root ::= "\ud800"', r"\\ud800 is no character"),
        ("root ::= <|nothing|>", "is not one token of this model"),
        ("root ::= <", "a token is written"),
        ('root ::= "x" root', "no text follows the rule root"),
        ('root ::= "a" | b\nb ::= "(" b ")"', "no text follows the rule b"),
        ("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nested deeper than 64"),
        ('root ::= "' + "a" * 1_000_000 + '"', f"{MAX_GRAMMAR_CHARS} are allowed"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_with_the_reason(grammar: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        to_lark(grammar, no_token)


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + " ".join(["[a-z]? [0-9]*"] * 2000),
        "root ::= " + " ".join(["([a-z]? [a-z]?)*"] * 1300),
    ],
)
def test_a_grammar_that_costs_too_much_is_refused_by_llguidance(tiny: Model, grammar: str) -> None:
    with pytest.raises(CompileError, match="cannot be followed"):
        tiny.grammars.check(lark(grammar))


SYNTAX = [
    "root ::= ",
    "root",
    "x",
    "::=",
    "\n",
    " ",
    "|",
    '"',
    "[",
    "]",
    "^",
    "(",
    ")",
    "*",
    "+",
    "?",
    "{",
    "}",
    ",",
    ".",
    "-",
]
FRAGMENTS = [*SYNTAX, '"a"', "[a-z]", "{2}", "{0,3}", "<[5]>", "<x>", "!<[7]>", "#c\n", "\\x41", "\\", "é", "🦊", "\t"]


def test_any_text_is_a_grammar_or_refused_with_a_reason(tiny: Model) -> None:
    rng = random.Random(3)
    compiled = refused = 0
    for _ in range(4000):
        text = 'root ::= "a" ' * rng.randint(0, 1) + "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 12)))
        try:
            tiny.grammars.check(lark(text))
            compiled += 1
        except (GrammarError, CompileError):
            refused += 1
    assert compiled > 50
    assert refused > 50
