"""The table of families: each is found by its marks, and reads what it writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from spoken import TOOLS, read

from backends.llama_cpp.chat.families import FAMILIES, GENERIC, Family, family_of
from backends.llama_cpp.chat.reader import Reading

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("write", {"path": "a.py", "text": 'if a < b:\n    print("é🦊 {}")\n', "tags": ["x", 1, None, {"deep": [True]}]}),
    ("add", {"a": -1, "b": 2.5}),
    ("now", {}),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_is_found_by_its_marks(family: Family) -> None:
    assert family_of("before " + " ".join(family.marks) + " after") is family


def test_a_text_without_marks_has_no_family() -> None:
    assert family_of("{{ messages }}") is None
    assert family_of("<tool_call> ]<]minimax[>[") is None


@pytest.mark.parametrize("family", [GENERIC, *FAMILIES], ids=lambda family: family.name)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_family_reads_the_calls_it_writes(family: Family, count: int) -> None:
    calls = CALLS[-count:]
    text = family.format.write(calls)
    message = read(Reading(family.format, TOOLS), [text])
    assert [(name, json.loads(arguments)) for name, arguments in message.calls] == calls
    assert message.content == ""
    assert read(Reading(family.format, TOOLS), list(text)) == message


@pytest.mark.parametrize(
    ("name", "markers"),
    [
        ("mistral", {"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"}),
        ("hermes", {"<tool_call>", "</tool_call>"}),
        ("llama-3", {"<|python_tag|>"}),
        ("glm", {"<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"}),
        ("gemma-4", {"<|tool_call>", "<tool_call|>", '<|"|>'}),
        ("gpt-oss", {"<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>"}),
        ("kimi-k2", {"<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_calls_section_end|>"}),
        ("deepseek-v3", {"<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"}),
        ("deepseek-v3.2", {"｜DSML｜"}),
    ],
)
def test_the_markers_that_may_be_control_tokens_are_known(name: str, markers: set[str]) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    assert markers <= set(family.format.visible)
