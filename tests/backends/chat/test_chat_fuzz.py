"""Random chat bodies: each is refused with its reason, or rendered, or refused by the template in its words."""

from __future__ import annotations

import json
import random
from datetime import datetime
from typing import Any

import pytest

from backends.llama_cpp.chat.body import decode_chat
from backends.llama_cpp.chat.conversation import Chat
from backends.llama_cpp.chat.template import CHATML, ChatTemplateError
from backends.llama_cpp.errors import RequestError

NOW = datetime(2025, 1, 2)  # noqa: DTZ001
BODIES = 3_000
HERMES = (
    "{% for t in tools %}<tool_call>{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}<think>"
)
ODD: list[Any] = [None, True, 0, -1, 1e308, "", "x", "a b", "\ud800", "x" * 300, [], {}, [[]], {"x": {"y": []}}, "none"]


class Dice(random.Random):
    def maybe(self, value: Any, odds: float = 0.93) -> Any:
        """Mostly the value, sometimes something odd."""
        return value if self.random() < odds else self.choice(ODD)

    def some(self, **fields: Any) -> dict[str, Any]:
        return {name: self.maybe(value) for name, value in fields.items() if self.random() < 0.9}

    def call(self) -> Any:
        arguments = self.choice(['{"city": "Oslo"}', "{", "[1]", "", '{"a": "\\ud800"}', {"a": 1}])
        function = self.some(name=self.choice(["f", "g", "?"]), arguments=arguments)
        return self.some(id=self.choice(["a", "123456789"]), type="function", function=function)

    def message(self) -> Any:
        role = self.choice(["system", "user", "assistant", "tool", "developer", "other"])
        content = self.choice(["hi", None, [{"type": "text", "text": "a"}], [{"type": "image_url"}], []])
        message = self.some(role=role, content=content)
        if self.random() < 0.3:
            message |= self.some(
                tool_calls=[self.call() for _ in range(self.randrange(3))],
                tool_call_id="a",
                reasoning_content="hm",
                name="n",
            )
        return message

    def body(self) -> Any:
        tools = [
            self.some(
                type="function",
                function=self.some(
                    name=self.choice(["f", "g", "h"]),
                    description="d",
                    parameters={"type": "object", "properties": self.maybe({"city": self.maybe({"type": "string"})})},
                ),
            )
            for _ in range(self.randrange(3))
        ]
        fields = {
            "messages": [self.message() for _ in range(self.randrange(1, 5))],
            "tools": tools,
            "tool_choice": self.choice(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
            "parallel_tool_calls": True,
            "chat_template_kwargs": {"enable_thinking": False},
            "reasoning_effort": "low",
            "reasoning_format": self.choice(["none", "auto", "deepseek"]),
            "add_generation_prompt": self.choice([True, False]),
            "continue_final_message": self.choice([True, False]),
        }
        kept = {name: self.maybe(value, 0.97) for name, value in fields.items() if self.random() < 0.5}
        return {"messages": fields["messages"], **kept}


def outcome(chat: Chat, data: bytes) -> str:
    try:
        made = chat.render(decode_chat(data), NOW)
    except RequestError as error:
        return error.message if error.status == 400 else ""
    except ChatTemplateError as error:
        return str(error)
    made.prompt.encode()
    reader = made.reading.reader()
    reader.feed("<tool_call>")
    reader.finish()
    return "rendered"


@pytest.mark.parametrize("source", [CHATML, HERMES], ids=["chatml", "hermes"])
def test_every_random_body_is_rendered_or_refused_with_its_field(source: str) -> None:
    seed = 20
    print(f"seed {seed}")
    dice, chat = Dice(seed), Chat.of(source, bos_token="<s>", eos_token="</s>")
    outcomes = [outcome(chat, json.dumps(dice.body()).encode()) for _ in range(BODIES)]
    assert all(outcomes)
    assert BODIES // 20 < outcomes.count("rendered") < BODIES - BODIES // 20
