"""From the client's messages to what a template takes, and to a prompt.

Owns what is done for templates that lack something: a system role, tools, calls in the history. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime

from backends.llama_cpp.chat.body import ChatBody, Choice, Must, chosen_tools, continues, template_kwargs
from backends.llama_cpp.chat.capabilities import Capabilities, probe
from backends.llama_cpp.chat.events import Content, Event, Reasoning
from backends.llama_cpp.chat.families import GENERIC, Family, Format, family_of
from backends.llama_cpp.chat.harmony import Harmony
from backends.llama_cpp.chat.messages import Message, ToolCall, call_arguments, message_text
from backends.llama_cpp.chat.reader import Reading
from backends.llama_cpp.chat.reasoning import Tags, opening_of, tags_of
from backends.llama_cpp.chat.template import ChatTemplate
from backends.llama_cpp.chat.tools import Tool

MISTRAL_ID_CHARS = 9
"""What Mistral's templates demand of an id, and what ours have."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model reads it, and how its answer is read."""

    prompt: str
    reading: Reading
    choice: Choice
    format: Format
    said: str = ""
    """What the prompt has of the answer already, reasoning aside."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A template and what is known about its family."""

    template: ChatTemplate
    capabilities: Capabilities
    family: Family | None
    tags: Tags | None

    @classmethod
    def of(cls, source: str, *, bos_token: str, eos_token: str) -> Chat:
        """Raises `ChatTemplateError` when `source` is not a template."""
        template = ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)
        return cls(template, probe(template), family_of(source), tags_of(source))

    @property
    def format(self) -> Format:
        """How calls are written: by the family, if it is known and its template knows calls or tools."""
        return self.family.format if self.family and self.knows_tools else GENERIC.format

    @property
    def knows_tools(self) -> bool:
        return self.family is not None and (self.capabilities.tools or self.capabilities.calls)

    def render(self, body: ChatBody, now: datetime) -> Rendered:
        """The prompt for a chat. Raises `ChatTemplateError` and `RequestError`."""
        choice = chosen_tools(body)
        form = self.format
        continued = body.messages[-1] if continues(body) else None
        said = body.messages[:-1] if continued is not None else body.messages
        messages = self._messages(said)
        describes = self.knows_tools and self.capabilities.tools
        if choice.tools and not describes:
            messages = _with_system(messages, _instructions(choice, form), parts=self.capabilities.parts)
        prompt = self.template.render(
            messages if self.capabilities.system else _without_system(messages),
            now=now,
            tools=[_described(tool) for tool in choice.tools.values()] if describes else (),
            kwargs=template_kwargs(body),
            add_generation_prompt=continued is not None or body.add_generation_prompt is not False,
        )
        raw = body.reasoning_format == "none"
        reading: Reading
        if isinstance(form, Harmony):
            more, inside = _harmony_continuation(continued)
            reading = Reading(Harmony(raw_reasoning=raw, inside=inside), choice.callable or choice.tools)
        else:
            more, tags = "", self.tags
            opening = opening_of(prompt, tags) if tags else ""
            if continued is not None:
                more, opening = _continuation(continued, tags, opening)
                # Words that went before leave no place for reasoning.
                tags = tags if opening else None
            calls = None if choice.must is Must.NONE else form
            ends = self.family is not None and self.family.calls_end_reasoning
            reading = Reading(calls, choice.callable or choice.tools, tags, opening, raw, ends)
        begun = message_text(continued) if continued is not None else ""
        return Rendered(prompt + more, reading, choice, form, begun)

    def _messages(self, messages: Sequence[Message]) -> list[dict[str, object]]:
        """What the template takes. Calls and results become words where it would not show them."""
        names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
        made: list[dict[str, object]] = []
        results = ""
        for message in messages:
            before, results = results, ""
            one = self._plain(message)
            if message.tool_calls and self.knows_tools and self.capabilities.calls:
                one |= self._calls(message, message.tool_calls)
            elif message.tool_calls:
                one = self._plain(Message(message.role, self._calls_in_words(message, message.tool_calls)))
            elif message.role == "tool" and self.knows_tools and self.capabilities.results:
                call_id = message.tool_call_id or ""
                one["tool_call_id"] = self._call_id(call_id)
                one.setdefault("name", names.get(call_id, ""))
            elif message.role == "tool":
                name = names.get(message.tool_call_id)
                results = f"Result of {name}: {message_text(message)}" if name else f"Result: {message_text(message)}"
                if before:
                    # Several results are one turn: many templates want the roles to alternate.
                    made.pop()
                    results = f"{before}\n{results}"
                one = self._plain(Message("user", results))
            made.append(one)
        return made

    def _calls(self, message: Message, calls: Sequence[ToolCall]) -> dict[str, object]:
        changed: dict[str, object] = {"tool_calls": [self._call(call, index) for index, call in enumerate(calls)]}
        if not message_text(message) and self.capabilities.null_content:
            changed["content"] = None
        return changed

    def _calls_in_words(self, message: Message, calls: Sequence[ToolCall]) -> str:
        arguments = [(call.function.name, call_arguments(call)) for call in calls]
        written = self.format.write(
            [(name, one if isinstance(one, dict) else {"arguments": one}) for name, one in arguments]
        )
        text = message_text(message)
        return f"{text}\n{written}" if text else written

    def _plain(self, message: Message) -> dict[str, object]:
        text = message_text(message)
        content: object = [{"type": "text", "text": text}] if self.capabilities.parts else text
        one: dict[str, object] = {"role": message.role, "content": content}
        if message.name is not None:
            one["name"] = message.name
        if message.reasoning_content is not None and message.role == "assistant":
            one["reasoning_content"] = message.reasoning_content
            if isinstance(self.format, Harmony):
                one["thinking"] = message.reasoning_content
                if message.tool_calls:
                    # gpt-oss's template takes one of the two.
                    del one["content"]
        return one

    def _call(self, call: ToolCall, index: int) -> dict[str, object]:
        arguments: object = call_arguments(call)
        if not self.capabilities.object_arguments and isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = {"name": call.function.name, "arguments": arguments}
        return {"id": self._call_id(call.id or f"call{index:05}"), "type": "function", "function": function}

    def _call_id(self, call_id: str) -> str:
        """Mistral's templates refuse ids of another length than theirs; the same id becomes the same."""
        fits = len(call_id) == MISTRAL_ID_CHARS or f"length != {MISTRAL_ID_CHARS}" not in self.template.source
        return call_id if fits else hashlib.sha256(call_id.encode()).hexdigest()[:MISTRAL_ID_CHARS]


def _described(tool: Tool) -> dict[str, object]:
    """A tool as templates take it, theirs to change."""
    function = {"name": tool.name, "description": tool.description, "parameters": deepcopy(tool.parameters)}
    return {"type": "function", "function": function}


def _instructions(choice: Choice, form: Format) -> str:
    """What a model is told of tools that its template does not describe."""
    offered = (choice.callable or choice.tools).values()
    lines = ["You can call these functions:"]
    lines += [json.dumps(_described(tool)["function"], ensure_ascii=False) for tool in offered]
    lines += [
        "",
        "To call one, answer in this form and with nothing else:",
        form.write([("NAME", {"ARGUMENT": "VALUE"})]),
    ]
    if choice.must is Must.CALL:
        lines.append("You must call a function now.")
    else:
        lines.append("If no function helps, answer in words.")
    return "\n".join(lines)


def _with_system(messages: list[dict[str, object]], text: str, *, parts: bool) -> list[dict[str, object]]:
    first = messages[0] if messages else None
    if first is not None and first["role"] in ("system", "developer"):
        return [{**first, "content": _joined(first["content"], text)}, *messages[1:]]
    content: object = [{"type": "text", "text": text}] if parts else text
    return [{"role": "system", "content": content}, *messages]


def _without_system(messages: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """For a template without a system role: its words open the next message of the user."""
    made: list[Mapping[str, object]] = []
    held: object = None
    for message in messages:
        if message["role"] in ("system", "developer"):
            held = message["content"] if held is None else _joined(held, message["content"])
        elif held is not None and message["role"] == "user":
            made.append({**message, "content": _joined(held, message["content"])})
            held = None
        else:
            made.append(message)
    return made if held is None else [*made, {"role": "user", "content": held}]


def _joined(first: object, second: object) -> object:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_as_parts(first), *_as_parts(second)]


def _as_parts(content: object) -> list[object]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _continuation(message: Message, tags: Tags | None, opening: str) -> tuple[str, str]:
    """The text of a message that the model goes on with, and the reasoning's opening if the text ends inside it."""
    text, thought = message_text(message), message.reasoning_content or ""
    if tags is None:
        return text, ""
    if thought and not opening:
        opening = f"{tags.open}\n"
        thought = opening + thought
    if not text and thought:
        return thought, opening
    if opening:
        return f"{thought}\n{tags.close}\n\n{text}", ""
    return text, ""


def _harmony_continuation(message: Message | None) -> tuple[str, Callable[[str], Event] | None]:
    """The same for gpt-oss: the text, and what the message is that it leaves open."""
    if message is None:
        return "", None
    text, thought = message_text(message), message.reasoning_content or ""
    if not text:
        return f"<|channel|>analysis<|message|>{thought}", Reasoning
    before = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant" if thought else ""
    return f"{before}<|channel|>final<|message|>{text}", Content
