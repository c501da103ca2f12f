"""What a template understands, found out by rendering small conversations with it.

Owns the probes. Pure. A template that refuses a probe lacks what the probe asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from backends.llama_cpp.chat.template import ChatTemplate, ChatTemplateError

_NOW = datetime(2025, 1, 2, 3, 4, 5)  # noqa: DTZ001 -- any time will do
_WORD = "quixotic"
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}, "required": ["probe_key"]},
    },
}
_RESULT: dict[str, object] = {
    "role": "tool",
    "name": "probe_tool",
    "tool_call_id": "call00001",
    "content": "probe_result",
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """How a template wants to be spoken to."""

    system: bool
    """It shows a system message."""
    parts: bool
    """It shows content only as a list of parts."""
    tools: bool
    """It describes tools."""
    calls: bool
    """It shows calls in the history."""
    results: bool
    """It shows the results of calls."""
    object_arguments: bool
    """Arguments are objects to it, not JSON texts."""
    null_content: bool
    """It shows calls only beside a content that is null."""


def probe(template: ChatTemplate) -> Capabilities:
    """Find out. Takes a few milliseconds."""
    parts = not _shows(template, [_say("user", _WORD)], _WORD) and _shows(
        template, [_say("user", _WORD, parts=True)], _WORD
    )
    user = _say("user", "Hello", parts=parts)
    tools = _shows(template, [user], "probe_tool", tools=[_TOOL])
    ways = [(content, as_object) for content in (None, "") for as_object in (True, False)]
    works = [way for way in ways if _shows_call(template, user, *way)]
    content, as_object = works[0] if works else ("", True)
    call = _call(content, as_object=as_object)
    return Capabilities(
        system=_shows(template, [_say("system", _WORD, parts=parts), user], _WORD),
        parts=parts,
        tools=tools,
        calls=bool(works),
        results=_shows(template, [user, call, _RESULT], "probe_result", tools=[_TOOL]),
        object_arguments=as_object,
        null_content=content is None,
    )


def _say(role: str, content: str, *, parts: bool = False) -> dict[str, object]:
    return {"role": role, "content": [{"type": "text", "text": content}] if parts else content}


def _call(content: str | None, *, as_object: bool) -> dict[str, object]:
    arguments: object = {"probe_key": _WORD} if as_object else f'{{"probe_key": "{_WORD}"}}'
    call = {"id": "call00001", "type": "function", "function": {"name": "probe_tool", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _shows_call(template: ChatTemplate, user: Mapping[str, object], content: str | None, as_object: bool) -> bool:
    text = _rendered(template, [user, _call(content, as_object=as_object), _RESULT], [_TOOL])
    if text is None or _WORD not in text or (content is None and ("None" in text or "null" in text)):
        return False
    # A text that was made JSON once more, or Python's way to write an object, is not what the model knows.
    written = text[: text.index(_WORD)].rsplit("probe_key", 1)[-1]
    return "\\" not in written and "'" not in written


def _shows(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, object]],
    word: str,
    tools: Sequence[Mapping[str, object]] = (),
) -> bool:
    text = _rendered(template, messages, tools)
    return text is not None and word in text


def _rendered(
    template: ChatTemplate, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]]
) -> str | None:
    try:
        return template.render(messages, now=_NOW, tools=tools)
    except ChatTemplateError:
        return None
