"""Families whose calls begin with a name, are elements, or are messages of their own."""

from __future__ import annotations

from spoken import MISTRAL_THINK, THINK, TOOLS, Said, format_of

from backends.llama_cpp.chat.events import Content, Reasoning
from backends.llama_cpp.chat.harmony import Harmony
from backends.llama_cpp.chat.reader import Reading
from backends.llama_cpp.chat.reasoning import tags_of

PARIS = ("get_time", '{"city": "Paris"}')
SUM = ("add", '{"a": 1, "b": 2}')

DEEPSEEK = [
    Said(
        "deepseek-v3",
        "<think>Hm.</think>Now.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n'
        '{"a": 1, "b": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "Now.",
        (PARIS, SUM),
        "Hm.",
    ),
    Said("deepseek-v3", "<｜tool▁calls▁begin｜>none", "<｜tool▁calls▁begin｜>none"),
    Said(
        "deepseek-v3.1",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        calls=(PARIS, SUM),
    ),
    Said(
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>fly<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>fly<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    Said(
        "deepseek-v3.1",
        "<｜tool▁call▁begin｜>add<｜tool▁sep｜>{oops}<｜tool▁call▁end｜>",
        calls=(("add", "{oops}"),),
    ),
]
MISTRAL = [
    Said("mistral", '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}', calls=(SUM,)),
    Said("mistral", '[TOOL_CALLS]add[CALL_ID]abc[ARGS]{"a": 1, "b": 2}', calls=(SUM,), ids=("abc",)),
    Said(
        "mistral",
        'Sure.[TOOL_CALLS]get_time[ARGS]{"city": "Paris"}[TOOL_CALLS]add{"a": 1, "b": 2}',
        "Sure.",
        (PARIS, SUM),
    ),
    Said("mistral", "[TOOL_CALLS]fly[ARGS]{}", "[TOOL_CALLS]fly[ARGS]{}"),
    Said(
        "mistral",
        "[THINK]Hm.[/THINK]Hello",
        "Hello",
        reasoning="Hm.",
        reading=Reading(format_of("mistral"), TOOLS, MISTRAL_THINK),
    ),
]
KIMI = [
    Said(
        "kimi-k2",
        'Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|>{"city": '
        '"Paris"}<|tool_call_end|><|tool_call_begin|>functions.add:1<|tool_call_argument_begin|> {"a": 1, "b": 2}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        "Ok.",
        (PARIS, SUM),
        ids=("functions.get_time:0", "functions.add:1"),
    ),
]
FUNCTIONARY = [
    Said("functionary-v3.1", '<function=add>{"a": 1, "b": 2}</function>', calls=(SUM,)),
    Said("functionary-v3.1", "<function=fly>{}</function>", "<function=fly>{}</function>"),
]
CODER = [
    Said(
        "qwen3-coder",
        "I write.\n\n<tool_call>\n<function=write>\n<parameter=path>\na.py\n</parameter>\n<parameter=text>\nif a < b:\n"
        '    print("</x>")\n\n</parameter>\n<parameter=tags>\n["a", 1]\n</parameter>\n</function>\n</tool_call>',
        "I write.",
        (("write", '{"path": "a.py", "text": "if a < b:\\n    print(\\"</x>\\")\\n", "tags": ["a", 1]}'),),
    ),
    Said(
        "qwen3-coder",
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\ntwo\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        calls=(("add", '{"a": 1, "b": "two"}'), ("now", "{}")),
    ),
    # What its models forget: the first marker, and the end of their reasoning.
    Said(
        "qwen3-coder",
        "Ok.\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "Ok.",
        (("add", '{"a": 1}'),),
    ),
    Said("qwen3-coder", "Write <function=fly> here", "Write <function=fly> here"),
    Said(
        "qwen3-coder",
        "<think>I use <tool_call> now.\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        (("now", "{}"),),
        "I use <tool_call> now.",
        reading=Reading(format_of("qwen3-coder"), TOOLS, THINK, calls_end_reasoning=True),
    ),
    Said(
        "qwen3-coder",
        "a <tool_call> b </think>c",
        "<think>a <tool_call> b </think>c",
        reading=Reading(format_of("qwen3-coder"), TOOLS, THINK, "<think>", True, calls_end_reasoning=True),
    ),
    Said("qwen3-coder", "<tool_call>\n<function=fly>\n</function>", "<tool_call>\n<function=fly>\n</function>"),
    Said(
        "qwen3-coder",
        "<tool_call>\n<function=write>\n<parameter=path>\na.p",
        calls=(("write", '{"path": "a.p'),),
    ),
    Said(
        "qwen3-coder",
        "<tool_call>\n<function=add>\n<parameter=a>1</parameter>and so on",
        "and so on",
        (("add", '{"a": 1}'),),
    ),
    Said(
        "qwen3-coder",
        "<tool_call>\n<function=add>\n<parameter=a>True</parameter><parameter=b>NaN</parameter></function></tool_call>",
        calls=(("add", '{"a": true, "b": "NaN"}'),),
    ),
    Said(
        "seed-oss",
        "<seed:tool_call>\n<function=write>\n<parameter=text>a\n</parameter>\n</function>\n</seed:tool_call>",
        calls=(("write", '{"text": "a\\n"}'),),
    ),
    Said(
        "seed-oss",
        "<seed:tool_call>\n<function=get_time>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        calls=(PARIS,),
    ),
    Said(
        "minimax-m2",
        '<think>\nHm.\n</think>\n\n<minimax:tool_call>\n<invoke name="get_time">\n<parameter name="city">Paris'
        '</parameter>\n</invoke>\n<invoke name="add">\n<parameter name="a">1</parameter>\n<parameter name="b">2'
        "</parameter>\n</invoke>\n</minimax:tool_call>",
        calls=(PARIS, SUM),
        reasoning="Hm.",
    ),
    Said(
        "glm",
        "\n<think>Hm.</think>\nOk.\n<tool_call>get_time\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "</tool_call><tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>",
        "Ok.",
        (PARIS, SUM),
        "Hm.",
    ),
    Said("glm", "<tool_call>now\n</tool_call>", calls=(("now", "{}"),)),
    Said("glm", "<tool_call>fly</tool_call>", "<tool_call>fly</tool_call>"),
]
NOTATIONS = [
    Said("gemma-4", 'Ok.<|tool_call>call:get_time{city:<|"|>Paris<|"|>}<tool_call|>', "Ok.", (PARIS,)),
    Said(
        "gemma-4",
        '<|tool_call>call:add{a:-1.5e3,b:{x:[true,null,<|"|>a "b" \\ {}<|"|>],y:{}}}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
        calls=(("add", '{"a": -1500.0, "b": {"x": [true, null, "a \\"b\\" \\\\ {}"], "y": {}}}'), ("now", "{}")),
    ),
    Said("gemma-4", "<|tool_call>call:fly{}<tool_call|>", "<|tool_call>call:fly{}<tool_call|>"),
    Said("gemma-4", "<|tool_call>call:add{a:}<tool_call|>", "<|tool_call>call:add{a:}<tool_call|>"),
    Said("gemma-4", "<|tool_call>call:add{a:1", "<|tool_call>call:add{a:1"),
    Said(
        "gemma-4",
        "<|channel>thought\nHm.<channel|>Hello",
        "Hello",
        reasoning="Hm.",
        reading=Reading(format_of("gemma-4"), TOOLS, tags_of("<channel|>")),
    ),
    Said(
        "lfm2",
        "Well.<|tool_call_start|>[get_time(city='Paris'), add(a=1, b=2), now()]<|tool_call_end|>",
        "Well.",
        (PARIS, SUM, ("now", "{}")),
    ),
    Said(
        "lfm2",
        '<|tool_call_start|>[write(path="a\\tb\\u00e9\\"", tags=[True, None, {"k": "v"}],)]<|tool_call_end|>',
        calls=(("write", '{"path": "a\\tbé\\"", "tags": [true, null, {"k": "v"}]}'),),
    ),
    Said("lfm2", "<|tool_call_start|>[add(a=x)]<|tool_call_end|>", "<|tool_call_start|>[add(a=x)]<|tool_call_end|>"),
    Said(
        "lfm2",
        '<|tool_call_start|>[get_time(city="\\ud83e\\udd8a\\ud800")]<|tool_call_end|>',
        calls=(("get_time", '{"city": "🦊\ufffd"}'),),
    ),
    Said("lfm2", "<|tool_call_start|>[]<|tool_call_end|>", "<|tool_call_start|>[]<|tool_call_end|>"),
    Said(
        "apertus",
        '<|tools_prefix|>[{"get_time": {"city": "Paris"}}, {"add": {"a": 1, "b": 2}}]<|tools_suffix|>',
        calls=(PARIS, SUM),
    ),
    Said("apertus", '<|tools_prefix|>["add"]<|tools_suffix|>', '<|tools_prefix|>["add"]<|tools_suffix|>'),
    Said(
        "deepseek-v3.2",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_time">\n<｜DSML｜parameter name="city" string="true">Paris'
        '</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" '
        'string="false">1</｜DSML｜parameter>\n<｜DSML｜parameter name="b" string="false">2'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        calls=(PARIS, SUM),
    ),
]
HARMONY = [
    Said("gpt-oss", "<|channel|>final<|message|>Hello", "Hello"),
    Said(
        "gpt-oss",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello",
        "Hello",
        reasoning="Hm.",
    ),
    Said(
        "gpt-oss",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"a": 1, "b": 2}',
        calls=(SUM,),
        reasoning="Hm.",
    ),
    Said(
        "gpt-oss",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>"
        '{"a": 1, "b": 2}<|call|>',
        calls=(SUM,),
        reasoning="a",
    ),
    Said(
        "gpt-oss",
        ' to=functions.add<|channel|>commentary<|message|>{"a": 1, "b": 2}',
        calls=(SUM,),
    ),
    Said(
        "gpt-oss",
        "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_time<|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "I will look.",
        (PARIS,),
    ),
    Said(
        "gpt-oss",
        "<|channel|>commentary to=browser.search<|message|>{}",
        "<|channel|>commentary to=browser.search<|message|>{}",
    ),
    Said("gpt-oss", "<|channel|>commentary to=assistant<|channel|>analysis<|message|>Hm.", reasoning="Hm."),
    Said("gpt-oss", "Plain words.", "Plain words."),
    Said("gpt-oss", "<|channel|>final<|message|>cut<|end|><|start|>assist", "cut"),
    Said(
        "gpt-oss",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello",
        "<|channel|>analysis<|message|>Hm.<|end|>Hello",
        reading=Reading(Harmony(raw_reasoning=True), TOOLS),
    ),
    Said("gpt-oss", " world", " world", reading=Reading(Harmony(inside=Content), TOOLS)),
    Said(
        "gpt-oss",
        "so.<|end|><|start|>assistant<|channel|>final<|message|>Hello",
        "Hello",
        reasoning="so.",
        reading=Reading(Harmony(inside=Reasoning), TOOLS),
    ),
]
RAW = [
    Said(
        "plain",
        "<think>\nHm.\n</think>\n\nHello",
        "<think>\nHm.\n</think>\n\nHello",
        reading=Reading(None, None, THINK, raw_reasoning=True),
    ),
    Said(
        "hermes",
        '<think>a</think> <tool_call>{"name": "now"}</tool_call>',
        "<think>a</think>",
        (("now", "{}"),),
        reading=Reading(format_of("hermes"), TOOLS, THINK, raw_reasoning=True),
    ),
    Said("plain", "<think>a</think>", "<think>a</think>", reading=Reading()),
]

OTHER_FAMILIES = [*DEEPSEEK, *MISTRAL, *KIMI, *FUNCTIONARY, *CODER, *NOTATIONS, *HARMONY, *RAW]
