"""Families whose calls are JSON objects. Some cases follow llama.cpp's tests/test-chat.cpp."""

from __future__ import annotations

from spoken import COHERE_THINK, THINK, TOOLS, Said, format_of

from backends.llama_cpp.chat.reader import Reading

PARIS = ("get_time", '{"city": "Paris"}')
SUM = ("add", '{"a": 1, "b": 2}')
PARIS_JSON = '{"name": "get_time", "arguments": {"city": "Paris"}}'
SUM_JSON = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
UNKNOWN_JSON = '{"name": "fly", "arguments": {}}'

HERMES = [
    Said("hermes", "Hello there.", "Hello there."),
    Said("hermes", "", ""),
    Said("hermes", f"<tool_call>\n{PARIS_JSON}\n</tool_call>", calls=(PARIS,)),
    Said("hermes", f"<tool_call>{PARIS_JSON}</tool_call>", calls=(PARIS,)),
    Said(
        "hermes",
        f"Let me see.\n<tool_call>\n{PARIS_JSON}\n</tool_call>\n<tool_call>\n{SUM_JSON}\n</tool_call>\n",
        "Let me see.",
        (PARIS, SUM),
    ),
    Said("hermes", f"<tool_call>\n{PARIS_JSON}\n{SUM_JSON}\n</tool_call>", calls=(PARIS, SUM)),
    Said("hermes", f"<tool_call>[{PARIS_JSON}, {SUM_JSON}]</tool_call>done", "done", (PARIS, SUM)),
    Said("hermes", '<tool_call>{"arguments": {"a": 1, "b": 2}, "name": "add"}</tool_call>', calls=(SUM,)),
    Said("hermes", '<tool_call>{"name": "now"}</tool_call>', calls=(("now", "{}"),)),
    Said(
        "hermes", '<tool_call>{"id": 7, "name": "now", "arguments": {}, "x": [1]}</tool_call>', calls=(("now", "{}"),)
    ),
    Said("hermes", r'<tool_call>{"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}</tool_call>', calls=(SUM,)),
    Said(
        "hermes",
        r'<tool_call>{"name": "write", "arguments": {"text": "a \"</tool_call>\" }{ \\", '
        r'"tags": [null, -1.5e3, "é🦊"]}}</tool_call>',
        calls=(("write", r'{"text": "a \"</tool_call>\" }{ \\", "tags": [null, -1.5e3, "é🦊"]}'),),
    ),
    Said(
        "hermes",
        r'<tool_call>{"name": "now", "arguments": "{\"a\": \"\ud83e\udd8a \ud800\"}"}</tool_call>',
        calls=(("now", '{"a": "🦊 \ufffd"}'),),
    ),
    # What only looks like a call is content.
    Said("hermes", "Use <tool_call> tags.", "Use <tool_call> tags."),
    Said("hermes", f"<tool_call>\n{UNKNOWN_JSON}\n</tool_call>", f"<tool_call>\n{UNKNOWN_JSON}\n</tool_call>"),
    Said("hermes", "a < b <tool", "a < b <tool"),
    Said("hermes", "<tool_call>", "<tool_call>"),
    Said("hermes", "ends with space \n", "ends with space \n"),
    Said("hermes", '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>'),
    Said("hermes", '<tool_call>{"name": "add", "arguments": [1]}', '<tool_call>{"name": "add", "arguments": [1]}'),
    Said("hermes", '<tool_call>{"name": "add", "argu', '<tool_call>{"name": "add", "argu'),
    Said(
        "hermes",
        f"x <tool_call>no</tool_call> <tool_call>{SUM_JSON}</tool_call>",
        "x <tool_call>no</tool_call>",
        (SUM,),
    ),
    # A call that breaks inside its arguments reaches the caller as it was written.
    Said("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1', calls=(("add", '{"a": 1'),)),
    Said(
        "hermes",
        '<tool_call>{"name": "add", "arguments": {\'a\': 1}}</tool_call> ok',
        " ok",
        (("add", "{'a': 1}}"),),
    ),
    Said("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}</tool_call>', calls=(SUM,)),
    # Reasoning first.
    Said("hermes", "<think>\nHm.\n</think>\n\nHello.", "Hello.", reasoning="Hm."),
    Said("hermes", "\n<think>\n\n</think>\n\nHello.", "Hello."),
    Said(
        "hermes",
        f"<think>I use <tool_call>.</think><tool_call>{SUM_JSON}</tool_call>",
        "",
        (SUM,),
        "I use <tool_call>.",
    ),
    Said("hermes", "<think>never closed", reasoning="never closed"),
    Said("hermes", "<thinking>no</thinking>", "<thinking>no</thinking>"),
    Said("hermes", "first <think>late</think>", "first <think>late</think>"),
]
READINGS = [
    Said(
        "hermes",
        "I start inside.\n</think>\nHello.",
        "Hello.",
        reasoning="I start inside.",
        reading=Reading(format_of("hermes"), TOOLS, THINK, "<think>\n"),
    ),
]
LLAMA_3 = [
    Said("llama-3", '{"name": "add", "parameters": {"a": 1, "b": 2}}', calls=(SUM,)),
    Said("llama-3", '{"type": "function", "name": "add", "parameters": {"a": 1, "b": 2}}', calls=(SUM,)),
    Said("llama-3", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}', calls=(SUM,)),
    Said(
        "llama-3",
        '{"name": "add", "parameters": {"a": 1, "b": 2}}; {"name": "get_time", "parameters": {"city": "Paris"}}',
        calls=(SUM, PARIS),
    ),
    Said("llama-3", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}'),
    Said("llama-3", "{x} is a set", "{x} is a set"),
    Said("llama-3", "[1, 2]", "[1, 2]"),
    Said("llama-3", "<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    Said("llama-3", 'I call {"name": "add"}', 'I call {"name": "add"}'),
]
MISTRAL = [
    Said(
        "mistral-nemo",
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}, "id": "123456789"}]',
        calls=(SUM,),
    ),
    Said("mistral-nemo", f"Well. [TOOL_CALLS] [{PARIS_JSON}, {SUM_JSON}]", "Well.", (PARIS, SUM)),
    Said("mistral-nemo", "[TOOL_CALLS] none", "[TOOL_CALLS] none"),
]
OTHERS = [
    Said("nemotron", f"<think>a</think><TOOLCALL>[{PARIS_JSON}, {SUM_JSON}]</TOOLCALL>", "", (PARIS, SUM), "a"),
    Said("granite", f"<|tool_call|>[{SUM_JSON}]", calls=(SUM,)),
    Said(
        "command-r",
        '<|START_THINKING|>Plan.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", '
        '"parameters": {"a": 1, "b": 2}}\n]<|END_ACTION|>',
        calls=(SUM,),
        reasoning="Plan.",
        reading=Reading(format_of("command-r"), TOOLS, COHERE_THINK),
    ),
    Said(
        "command-r",
        "<|START_RESPONSE|>Hello<|END_RESPONSE|>",
        "Hello",
        reading=Reading(format_of("command-r"), TOOLS, COHERE_THINK),
    ),
    Said("apriel", f"<tool_calls>[{SUM_JSON}]</tool_calls>", calls=(SUM,)),
    Said("minimax-m1", f"<tool_calls>\n{PARIS_JSON}\n{SUM_JSON}\n</tool_calls>", calls=(PARIS, SUM)),
    Said("gigachat", f"<|function_call|>{SUM_JSON}", calls=(SUM,)),
    Said("firefunction", f" functools[{PARIS_JSON}, {SUM_JSON}]", calls=(PARIS, SUM)),
    Said("generic", SUM_JSON, calls=(SUM,)),
    Said("generic", f"[{PARIS_JSON}, {SUM_JSON}]\n", calls=(PARIS, SUM)),
    Said("generic", f"\n{PARIS_JSON}\n{SUM_JSON}", calls=(PARIS, SUM)),
    Said("generic", '{"answer": 3}', '{"answer": 3}'),
    Said("plain", f"<think>a</think><tool_call>{SUM_JSON}", f"<tool_call>{SUM_JSON}", reasoning="a"),
]

JSON_FAMILIES = [*HERMES, *READINGS, *LLAMA_3, *MISTRAL, *OTHERS]
