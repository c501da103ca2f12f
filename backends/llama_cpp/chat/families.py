"""The families of models by how they write tool calls, told apart by what their templates contain.

Owns the table. The first entry whose marks are all in the template's text counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from backends.llama_cpp.chat.converted_calls import (
    ConvertedCalls,
    read_apertus,
    read_gemma,
    read_python,
    write_apertus,
    write_gemma,
    write_python,
)
from backends.llama_cpp.chat.harmony import Harmony
from backends.llama_cpp.chat.json_calls import JsonCalls
from backends.llama_cpp.chat.named_calls import NamedCalls
from backends.llama_cpp.chat.source import Parse, Source
from backends.llama_cpp.chat.tagged_calls import TaggedCalls
from backends.llama_cpp.chat.tools import Call, Tools


class Format(Protocol):
    """How a family writes its calls."""

    @property
    def visible(self) -> tuple[str, ...]:
        """The markers that may be control tokens."""

    @property
    def openers(self) -> tuple[str, ...]:
        """What a call begins with."""

    def write(self, calls: Sequence[Call]) -> str:
        """Calls as the family writes them."""

    def parse(self, source: Source, tools: Tools) -> Parse[None]:
        """Content and calls until the text ends."""


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    marks: tuple[str, ...]
    format: Format
    unless: str = ""
    """A text that shows another family, with no entry of its own."""
    calls_end_reasoning: bool = False
    """Its models are known to call before they have ended their reasoning."""


_XML_HEADER = re.compile(r"\s*<function=(?P<name>[^\s>]+)>")
_XML_KEY = re.compile(r"\s*<parameter=(?P<key>[^\n>]+)>")
_XML_WRITE = ("\n<function={name}>", "<parameter={key}>", "</function>")
_MISTRAL_HEADER = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?(?=\{)")
_KIMI_HEADER = re.compile(r"\s*(?P<id>(?:functions\.)?(?P<name>[^\s:<]+):\d+)\s*<\|tool_call_argument_begin\|>")


def _dsml(section: str) -> TaggedCalls:
    return TaggedCalls(
        f"<｜DSML｜{section}>",
        f"</｜DSML｜{section}>",
        re.compile(r'\s*<｜DSML｜invoke name="(?P<name>[^"]+)">'),
        re.compile(r'\s*<｜DSML｜parameter name="(?P<key>[^"]+)"(?: string="(?:true|false)")?>'),
        "</｜DSML｜parameter>",
        '\n<｜DSML｜invoke name="{name}">',
        '<｜DSML｜parameter name="{key}" string="{is_text}">',
        "</｜DSML｜invoke>",
    )


_LFM2 = ConvertedCalls("<|tool_call_start|>", "<|tool_call_end|>", read_python, write_python)

GENERIC = Family("generic", (), JsonCalls(bare=True))
"""Our own form, for a template that knows no tools or a family that is not in the table."""

FAMILIES = (
    Family("gpt-oss", ("<|channel|>", "<|message|>"), Harmony()),
    Family(
        "qwen3-coder",
        ("<tool_call>", "<function=", "<parameter="),
        TaggedCalls(
            "<tool_call>", "</tool_call>", _XML_HEADER, _XML_KEY, "</parameter>", *_XML_WRITE, True, "<function="
        ),
        calls_end_reasoning=True,
    ),
    Family(
        "seed-oss",
        ("<seed:tool_call>",),
        TaggedCalls("<seed:tool_call>", "</seed:tool_call>", _XML_HEADER, _XML_KEY, "</parameter>", *_XML_WRITE),
    ),
    Family(
        "minimax-m2",
        ("<minimax:tool_call>",),
        TaggedCalls(
            "<minimax:tool_call>",
            "</minimax:tool_call>",
            re.compile(r'\s*<invoke name="(?P<name>[^"]+)">'),
            re.compile(r'\s*<parameter name="(?P<key>[^"]+)">'),
            "</parameter>",
            '\n<invoke name="{name}">',
            '<parameter name="{key}">',
            "</invoke>",
        ),
    ),
    Family(
        "glm",
        ("<tool_call>", "<arg_key>", "<arg_value>"),
        TaggedCalls(
            "<tool_call>",
            "</tool_call>",
            re.compile(r"\s*(?P<name>[^\s<]+)\s*(?=</?[at])"),
            re.compile(r"\s*<arg_key>(?P<key>[^<]+)</arg_key>\s*<arg_value>"),
            "</arg_value>",
            "{name}",
            "<arg_key>{key}</arg_key>\n<arg_value>",
        ),
    ),
    Family(
        "kimi-k2",
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        NamedCalls(
            "<|tool_call_begin|>",
            _KIMI_HEADER,
            "functions.",
            ":0<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        ),
        calls_end_reasoning=True,
    ),
    Family(
        "deepseek-v3",
        ("<｜tool▁calls▁begin｜>", "```json"),
        NamedCalls(
            "<｜tool▁call▁begin｜>",
            re.compile(r"function<｜tool▁sep｜>(?P<name>[^\s<]+)\n```json\n"),
            "function<｜tool▁sep｜>",
            "\n```json\n",
            "<｜tool▁call▁end｜>",
            "\n```",
            ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        ),
    ),
    Family(
        "deepseek-v3.1",
        ("<｜tool▁calls▁begin｜>",),
        NamedCalls(
            "<｜tool▁call▁begin｜>",
            re.compile(r"(?P<name>[^\s<]+)<｜tool▁sep｜>"),
            "",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        ),
    ),
    Family(
        "deepseek-v3.2",
        ("dsml_token", "DSML", "function_calls"),
        _dsml("function_calls"),
    ),
    Family("deepseek-v4", ("dsml_token", "DSML", "tool_calls"), _dsml("tool_calls")),
    Family("mistral", ("[TOOL_CALLS]", "[ARGS]"), NamedCalls("[TOOL_CALLS]", _MISTRAL_HEADER, "", "[ARGS]")),
    Family("mistral-nemo", ("[TOOL_CALLS]",), JsonCalls(("[TOOL_CALLS]",), array=True)),
    Family("nemotron", ("<TOOLCALL>",), JsonCalls(("<TOOLCALL>",), "</TOOLCALL>", array=True)),
    Family(
        "granite", ("<|tool_call|>",), JsonCalls(("<|tool_call|>",), array=True, silent=("<response>", "</response>"))
    ),
    Family(
        "command-r",
        ("<|START_ACTION|>", "tool_name"),
        JsonCalls(
            ("<|START_ACTION|>",),
            "<|END_ACTION|>",
            name_key="tool_name",
            arguments_key="parameters",
            array=True,
            silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
        ),
    ),
    Family("apriel", ("<tool_calls>[",), JsonCalls(("<tool_calls>",), "</tool_calls>", array=True)),
    Family("minimax-m1", ("<tool_calls>",), JsonCalls(("<tool_calls>",), "</tool_calls>")),
    Family("gigachat", ("<|function_call|>",), JsonCalls(("<|function_call|>",))),
    Family("firefunction", ("functools[",), JsonCalls(("functools",), array=True)),
    Family("hermes", ("<tool_call>",), JsonCalls(("<tool_call>",), "</tool_call>"), unless="]<]minimax[>["),
    Family(
        "gemma-4",
        ("<|tool_call>call:", "<tool_call|>"),
        ConvertedCalls("<|tool_call>call:", "<tool_call|>", read_gemma, write_gemma),
    ),
    Family("lfm2", ("<|tool_list_start|>",), _LFM2),
    Family("lfm2.5", ("List of tools: [",), _LFM2),
    Family(
        "apertus",
        ("<|tools_prefix|>", "<|tools_suffix|>"),
        ConvertedCalls("<|tools_prefix|>", "<|tools_suffix|>", read_apertus, write_apertus),
    ),
    Family(
        "functionary-v3.1",
        ("<function=", "</function>"),
        NamedCalls("<function=", re.compile(r"(?P<name>[^\s>]+)>"), "", ">", "</function>"),
    ),
    Family(
        "llama-3",
        ('"parameters": dictionary of argument name',),
        JsonCalls(("<|python_tag|>",), arguments_key="parameters", bare=True),
    ),
)


def family_of(template: str) -> Family | None:
    """The family whose calls a template writes, if the table has it."""
    for family in FAMILIES:
        if all(mark in template for mark in family.marks):
            return None if family.unless and family.unless in template else family
    return None
