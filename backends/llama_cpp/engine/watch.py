"""Where the free part of an answer ends: behind the reasoning, or behind the text that announces a call.

Pure, and on bytes: a token may end in the middle of a character, and may have more than the text that is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backends.llama_cpp.engine.types import Constraint


@dataclass(frozen=True, slots=True)
class Watch:
    """The free part so far."""

    stages: tuple[tuple[bytes, ...], ...]
    """What is waited for, one after the other: any text of each stage."""
    opening: bytes = b""
    """What the answer may begin with, so that `closing` is waited for first. Empty once that is decided."""
    closing: bytes = b""
    tail: bytes = b""
    """The end of the text so far, as far as something that is waited for may have begun in it."""

    def after(self, piece: bytes) -> tuple[Watch, bytes | None]:
        """The state behind `piece`, and what of it lies behind the free part; None if that goes on."""
        text = self.tail + piece
        state = self
        if state.opening:
            begun = text.lstrip()
            if not begun.startswith(state.opening):
                if state.opening.startswith(begun):
                    return replace(state, tail=text), None
                state = replace(state, opening=b"")
            else:
                text = begun[len(state.opening) :]
                state = replace(state, opening=b"", stages=((state.closing,), *state.stages))
        stages = state.stages
        while stages:
            found = [(place, -len(one)) for one in stages[0] if (place := text.find(one)) >= 0]
            if not found:
                keep = max(map(len, stages[0])) - 1
                return replace(state, stages=stages, tail=text[-keep:] if keep else b""), None
            place, negative_length = min(found)
            text = text[place - negative_length :]
            stages = stages[1:]
        return replace(state, stages=(), tail=b""), text


def watch_for(constraint: Constraint) -> Watch | None:
    """What an answer begins as; None if it is constrained from its first token."""
    thinking = constraint.thinking
    triggers = tuple(trigger.encode() for trigger in constraint.triggers)
    stages = (triggers,) if triggers else ()
    if thinking is not None and thinking.begun:
        return Watch(((thinking.close.encode(),), *stages))
    if not stages:
        return None
    if thinking is None:
        return Watch(stages)
    return Watch(stages, opening=thinking.open.encode(), closing=thinking.close.encode())
