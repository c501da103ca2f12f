"""Chat templates: text out for messages in, and what a hostile one cannot do."""

from __future__ import annotations

import sys
from datetime import datetime

import pytest

from backends.llama_cpp.chat.template import CHATML, ChatTemplate, ChatTemplateError

NOW = datetime(2025, 1, 2, 3, 4, 5)  # noqa: DTZ001
ASK = [{"role": "user", "content": "Hi"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye"},
]


def render(source: str, messages: list[dict[str, str]] = ASK, **bounds: int) -> str:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    return template.render(messages, now=NOW, **bounds)


LLAMA2_LIKE = """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system + '\\n' if loop.first and system else '') + message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""


@pytest.mark.parametrize(
    ("source", "messages", "expected"),
    [
        (CHATML, ASK, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (LLAMA2_LIKE, ASK, "<s>[INST] Hi [/INST]"),
        (LLAMA2_LIKE, TALK, "<s>[INST] Be brief.\nHi [/INST] Yes?</s>[INST] Bye [/INST]"),
        ("{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\nend", ASK, "  Hi\nend"),
        (
            "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            TALK,
            "system",
        ),
        ("{{ messages | tojson }}", ASK, '[{"role": "user", "content": "Hi"}]'),
        ("{{ '<é>' | tojson }}", ASK, '"<é>"'),
        ("{{ '\\ud83e\\udd8a \\ud800' }}", ASK, "🦊 \ufffd"),
        ("{{ messages | map(attribute='role') | tojson }}", ASK, '["user"]'),
        ("{% set a = [] %}{% set _ = a.append(1) %}{{ a }}", ASK, "[1]"),
        ("{{ strftime_now('%d %b %Y') }}", ASK, "02 Jan 2025"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", ASK, "Hi!"),
        ("{% for tool in tools %}{{ tool }}{% endfor %}none", ASK, "none"),
        ("{{ 'tools' if tools else 'no tools' }}", ASK, "no tools"),
        ("{{ messages[0].role }}", [{"role": "developer", "content": "x"}], "system"),
        (
            "{% if messages[0].role == 'developer' %}developer known{% endif %}",
            [{"role": "developer", "content": "x"}],
            "developer known",
        ),
    ],
)
def test_a_template_renders_as_its_author_expects(source: str, messages: list[dict[str, str]], expected: str) -> None:
    assert render(source, messages) == expected


def test_a_template_that_refuses_is_quoted() -> None:
    with pytest.raises(ChatTemplateError, match="refuses these messages: roles must alternate"):
        render(LLAMA2_LIKE, [*ASK, *ASK])


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'open", "{% endif %}", "{% generation %}never closed", "{{ }}"])
def test_a_template_with_bad_syntax_does_not_compile(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="does not compile"):
        render(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ raise_exception.__globals__.items() }}", "unsafe"),
        ("{{ messages.extend(messages) }}", "unsafe"),
        ("{{ messages[0].update(role='system') }}", "unsafe"),
        ("{% set a = [] %}{{ a.append(a) }}{{ a | tojson }}", "Circular reference"),
        ("{% for a in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "more than 10000 steps"),
        ("{% for a in range(9999) %}{{ 'xxxxxxxxxxxxxxxx' * 10000 }}{% endfor %}", "longer than 67108864 characters"),
        ("{{ 'x' * 10**10 }}", "longer than 67108864 characters"),
        ("{{ 10**10 * [1] }}", "longer than 67108864 characters"),
        ("{{ 9**(9**9) }}", "integer of more than 4096 bits"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[0].nothing.more }}", "no attribute 'nothing'"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_a_hostile_template_is_stopped(source: str, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=reason):
        render(source, max_steps=10_000)


def test_a_long_conversation_stays_within_the_default_bound() -> None:
    assert render(CHATML, [{"role": "user", "content": "x"}] * 10_000).count("<|im_start|>") == 10_001


def test_rendering_leaves_another_tracer_in_place() -> None:
    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        render(CHATML)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
