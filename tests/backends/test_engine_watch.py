from __future__ import annotations

import pytest

from backends.llama_cpp.engine.types import Constraint, Thinking
from backends.llama_cpp.engine.watch import Watch, watch_for

THINK = Thinking("<think>", "</think>")
BEGUN = Thinking("<think>", "</think>", begun=True)


def cut(watch: Watch, text: bytes) -> tuple[bytes, bytes] | None:
    """Text before and behind the place where the free part ends, the same for every split of the text."""
    results = set()
    for split in range(len(text) + 1):
        state, found = watch, None
        read = b""
        for piece in (text[:split], text[split:]):
            state, rest = state.after(piece)
            read += piece
            if rest is not None:
                found = (len(read) - len(rest), read[len(read) - len(rest) :])
                break
        results.add(found[0] if found else None)
    assert len(results) == 1, f"{results} of {text!r}"
    end = results.pop()
    return None if end is None else (text[:end], text[end:])


def watching(constraint: Constraint) -> Watch:
    watch = watch_for(constraint)
    assert watch is not None
    return watch


def test_without_reasoning_or_triggers_nothing_is_free() -> None:
    assert watch_for(Constraint("g")) is None
    assert watch_for(Constraint("g", THINK)) is None


def test_reasoning_that_the_prompt_has_begun_is_free_up_to_its_end() -> None:
    watch = watching(Constraint("g", BEGUN))
    assert cut(watch, b"Hm. </thin </think>\n{") == (b"Hm. </thin </think>", b"\n{")
    assert cut(watch, b"Hm.") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"Let me see.<call>x", (b"Let me see.<call>", b"x")),
        (b"[CALL]", (b"[CALL]", b"")),
        (b"a <cal <call>", (b"a <cal <call>", b"")),
        (b"nothing", None),
        (b"", None),
    ],
)
def test_a_lazy_constraint_begins_behind_its_first_trigger(text: bytes, expected: tuple[bytes, bytes] | None) -> None:
    assert cut(watching(Constraint("g", triggers=("<call>", "[CALL]"))), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"<think>Should I <call>?</think>No.<call>x", (b"<think>Should I <call>?</think>No.<call>", b"x")),
        (b" \n<think>a</think><call>", (b" \n<think>a</think><call>", b"")),
        (b"Well, <think><call>x", (b"Well, <think><call>", b"x")),
        (b"<thinker><call>x", (b"<thinker><call>", b"x")),
        (b"<call>x", (b"<call>", b"x")),
        (b"<think><call>x", None),
    ],
)
def test_what_reasoning_says_of_calls_triggers_nothing(text: bytes, expected: tuple[bytes, bytes] | None) -> None:
    assert cut(watching(Constraint("g", THINK, triggers=("<call>",))), text) == expected


def test_reasoning_that_the_prompt_has_begun_hides_triggers_too() -> None:
    watch = watching(Constraint("g", BEGUN, triggers=("<call>",)))
    assert cut(watch, b"<call></think><call>x") == (b"<call></think><call>", b"x")


def test_a_trigger_may_end_in_the_middle_of_a_character() -> None:
    watch = watching(Constraint("g", triggers=("\uff5c",)))
    raw = "a\uff5cé".encode()
    assert cut(watch, raw) == (raw[:4], raw[4:])
