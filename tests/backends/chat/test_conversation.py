"""From messages to prompts: small templates that each understand something else."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from backends.llama_cpp.chat.body import decode_chat
from backends.llama_cpp.chat.conversation import Chat, Rendered
from backends.llama_cpp.chat.events import Content, Reasoning
from backends.llama_cpp.chat.harmony import Harmony
from backends.llama_cpp.chat.template import CHATML, ChatTemplateError
from backends.llama_cpp.errors import RequestError

NOW = datetime(2025, 1, 2)  # noqa: DTZ001
USER = {"role": "user", "content": "Time?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "abc", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Oslo"}'}}
CALLED = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
RESULT = {"role": "tool", "tool_call_id": "abc", "content": "12:00"}

HERMES = """\
{%- if tools %}[{% for tool in tools %}{{ tool | tojson }}{% endfor %} <tool_call></tool_call>]{% endif %}
{%- for m in messages %}<{{ m.role }}>{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% if enable_thinking %}<think>
{% endif %}{% endif %}"""
TEXT_ARGUMENTS = """\
{%- for tool in tools %}{{ tool.function.name }};{% endfor %}
{%- for m in messages %}<{{ m.role }}>
{%- if m.content is none %}{% for call in m.tool_calls %}[TOOL_CALLS]{{ call.function.name + call.function.arguments }}
{%- if call.id | length != 9 %}{{ raise_exception('bad id') }}{% endif %}{{ '#' + call.id }}{% endfor %}
{%- else %}{{ m.content }}{% if m.role == 'tool' %}{{ '#' + m.tool_call_id + '=' + m.name }}{% endif %}{% endif %}
{%- endfor %}"""
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
PARTS = "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
HARMONY = """\
{%- for m in messages %}<|start|>{{ m.role }}
{%- if m.tool_calls %}{% if m.content and m.thinking %}{{ raise_exception('both') }}{% endif %}
{{- '<|channel|>analysis<|message|>' + (m.thinking or '') + '<|end|>' }}
{{- ' to=functions.' + m.tool_calls[0].function.name + '<|message|>' + m.tool_calls[0].function.arguments | tojson }}
{%- else %}<|message|>{{ m.content }}{% endif %}<|end|>
{%- endfor %}{% for tool in tools %}{{ tool.function.name }}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""


def render(source: str, messages: list[dict[str, Any]], **fields: Any) -> Rendered:
    body = decode_chat(json.dumps({"messages": messages, **fields}).encode())
    return Chat.of(source, bos_token="<s>", eos_token="</s>").render(body, NOW)


def prompt(source: str, messages: list[dict[str, Any]], **fields: Any) -> str:
    return render(source, messages, **fields).prompt


def test_a_template_with_tools_gets_them_and_the_calls_as_objects() -> None:
    text = prompt(HERMES, [*CALLED, RESULT], tools=[TOOL])
    assert text.startswith(f"[{json.dumps(TOOL)} ")
    assert '<assistant><tool_call>{"name": "get_time", "arguments": {"city": "Oslo"}}</tool_call><tool>12:00' in text
    assert text.endswith("<assistant>")


def test_without_tools_a_template_hears_of_none() -> None:
    assert prompt(HERMES, [USER]) == "<user>Time?<assistant>"
    assert prompt(HERMES, [USER], tools=[TOOL], tool_choice="none") == "<user>Time?<assistant>"
    assert prompt(HERMES, [USER], tools=[]) == "<user>Time?<assistant>"


def test_a_template_that_joins_texts_gets_arguments_as_text_and_a_content_of_null() -> None:
    call = {**CALL, "id": "123456789"}
    messages = [USER, {**CALLED[1], "tool_calls": [call]}, {**RESULT, "tool_call_id": "123456789"}]
    assert prompt(TEXT_ARGUMENTS, messages, tools=[TOOL]) == (
        'get_time;<user>Time?<assistant>[TOOL_CALLS]get_time{"city": "Oslo"}#123456789<tool>12:00#123456789=get_time'
    )


def test_a_template_that_wants_ids_of_nine_characters_gets_the_same_one_for_call_and_result() -> None:
    text = prompt(TEXT_ARGUMENTS, [*CALLED, RESULT], tools=[TOOL])
    made = text.split("#")[1].split("<")[0]
    assert len(made) == 9
    assert text.endswith(f"#{made}=get_time")


def test_a_template_without_tools_reads_of_them_in_the_system_message() -> None:
    text = prompt(CHATML, [{"role": "system", "content": "Be brief."}, *CALLED, RESULT, RESULT], tools=[TOOL])
    assert text.startswith(
        "<|im_start|>system\nBe brief.\n\nYou can call these functions:\n" + json.dumps(TOOL["function"])
    )
    assert '<|im_start|>assistant\n{"name": "get_time", "arguments": {"city": "Oslo"}}<|im_end|>' in text
    result = "Result of get_time: 12:00"
    assert f"<|im_start|>user\n{result}\n{result}<|im_end|>" in text


def test_a_template_without_a_system_role_reads_it_in_the_users_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert prompt(NO_SYSTEM, [system, USER]) == "<user>Be brief.\n\nTime?"
    assert prompt(NO_SYSTEM, [system]) == "<user>Be brief."
    assert "You can call" in prompt(NO_SYSTEM, [USER], tools=[TOOL])


def test_a_template_that_wants_parts_gets_them() -> None:
    assert prompt(PARTS, [{"role": "system", "content": "A"}, USER]) == "<system>A<user>Time?"
    assert prompt(
        PARTS, [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    ) == ("<user>a\nb")
    assert prompt(PARTS, [{"role": "system", "content": "A"}, USER], tools=[TOOL]).startswith("<system>AYou can call")


def test_what_a_model_broke_goes_back_to_it_as_it_was() -> None:
    broken = {**CALL, "function": {"name": "get_time", "arguments": "{'city'"}}
    text = prompt(HERMES, [USER, {"role": "assistant", "tool_calls": [broken]}, RESULT], tools=[TOOL])
    assert """"arguments": "{'city'\"""" in text
    assert '{"arguments": "{\'city\'"}' in prompt(CHATML, [USER, {"role": "assistant", "tool_calls": [broken]}, RESULT])


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, "<assistant>"),
        ({"enable_thinking": True}, "<assistant><think>\n"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, "<assistant>"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "<assistant><think>\n"),
        ({"add_generation_prompt": False}, "<user>Time?"),
    ],
)
def test_the_fields_about_thinking_and_the_prompt_reach_the_template(fields: dict[str, Any], ends: str) -> None:
    rendered = render(HERMES, [USER], **fields)
    assert rendered.prompt.endswith(ends)
    assert bool(rendered.reading.opening) is ends.endswith("<think>\n")


def test_reasoning_effort_reaches_the_template() -> None:
    assert prompt("{{ reasoning_effort }}", [USER], reasoning_effort="high") == "high"


@pytest.mark.parametrize(
    ("last", "fields", "ends", "opened"),
    [
        ({"content": "It is"}, {}, "<assistant>It is", False),
        ({"content": "It is"}, {"continue_final_message": True}, "<assistant>It is", False),
        ({"content": "It is"}, {"enable_thinking": True}, "<assistant><think>\n\n</think>\n\nIt is", False),
        ({"reasoning_content": "Hm"}, {"enable_thinking": True}, "<assistant><think>\nHm", True),
        ({"reasoning_content": "Hm"}, {}, "<assistant><think>\nHm", True),
        ({"reasoning_content": "Hm", "content": "So"}, {}, "<assistant><think>\nHm\n</think>\n\nSo", False),
        ({"content": "It is"}, {"continue_final_message": False}, "<assistant>It is<assistant>", False),
        ({"content": "It is"}, {"add_generation_prompt": True}, "<assistant>It is<assistant>", False),
    ],
)
def test_a_last_message_of_the_assistant_is_continued(
    last: dict[str, Any], fields: dict[str, Any], ends: str, opened: bool
) -> None:
    rendered = render(HERMES, [USER, {"role": "assistant", **last}], **fields)
    assert rendered.prompt == "<user>Time?" + ends
    assert bool(rendered.reading.opening) is opened


def test_gpt_oss_thinks_in_a_channel_and_continues_in_one() -> None:
    called = {**CALLED[1], "reasoning_content": "Hm.", "content": "dropped"}
    text = prompt(HARMONY, [USER, called, RESULT], tools=[TOOL])
    assert '<|channel|>analysis<|message|>Hm.<|end|> to=functions.get_time<|message|>{"city": "Oslo"}<|end|>' in text
    assert prompt(HARMONY, [USER, {"role": "assistant", "content": "It"}]).endswith(
        "assistant<|channel|>final<|message|>It"
    )
    for last, inside in (({"content": "It"}, Content), ({"reasoning_content": "Hm"}, Reasoning)):
        form = render(HARMONY, [USER, {"role": "assistant", **last}]).reading.format
        assert isinstance(form, Harmony)
        assert form.inside is inside


@pytest.mark.parametrize("name", ["tools", "messages", "bos_token", "add_generation_prompt"])
def test_what_rendering_gives_a_template_is_not_the_clients_to_set(name: str) -> None:
    with pytest.raises(RequestError) as refusal:
        render(CHATML, [USER], chat_template_kwargs={name: 1})
    assert refusal.value.param == f"chat_template_kwargs.{name}"


def test_a_template_that_refuses_or_changes_its_tools_harms_only_itself() -> None:
    change = "{% for t in tools %}{% set _ = t.function.parameters.required.append('x') %}{% endfor %}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": []}}}
    rendered = render(change + "<tool_call>{{ tools | tojson }}", [USER], tools=[tool])
    assert '["x"]' in rendered.prompt
    assert rendered.choice.tools["f"].parameters["required"] == []
    with pytest.raises(ChatTemplateError, match="unsafe"):
        render("{{ messages.__class__.__mro__ }}", [USER])


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"x": value}
    return value


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


REFUSED = [
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [tool(name="")]}, "tools[0].function.name"),
    ({"tools": [tool(name="a b")]}, "tools[0].function.name"),
    ({"tools": [tool(name="x" * 129)]}, "tools[0].function.name"),
    ({"tools": [tool(), tool()]}, "tools[1].function.name"),
    ({"tools": [{"type": "browser", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type"),
    ({"tools": [tool(parameters=deep(40))]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters={"description": "x" * 70_000})]}, "tools[0].function.parameters"),
    ({"tools": [tool(name=f"f{i}") for i in range(257)]}, "tools"),
    ({"tools": [tool(name=f"f{i}", description="x" * 9000) for i in range(200)]}, "tools"),
    ({"tools": [tool()], "tool_choice": "always"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"reasoning_format": "wild"}, "reasoning_format"),
    ({"reasoning_effort": 5}, "reasoning_effort"),
    ({"enable_thinking": "yes"}, "enable_thinking"),
    ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    ({"chat_template_kwargs": deep(40)}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a": "x" * 70_000}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {f"k{i}": 1 for i in range(65)}}, "chat_template_kwargs"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"messages": CALLED}, "messages"),
    ({"messages": [USER, *[{"role": "assistant", "content": "a"}] * 2]}, "messages"),
    (
        {
            "messages": [{"role": "assistant", "content": "a"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        "continue_final_message",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}, USER]}, "messages[0].tool_calls[0].function"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep(70)}}]}, USER]},
        "messages[0].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{param}-{i}" for i, (_, param) in enumerate(REFUSED)])
def test_a_bad_chat_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        decode_chat(json.dumps({"messages": [USER], **fields}).encode())
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert refusal.value.message.startswith(param.split("[")[0])
