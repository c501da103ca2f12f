"""What a stream is told while its request waits: comments, and reasoning text for models that ask for it.

Owns the words and the shape of the chunks. Must never wait or write.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from swapd.http.record import Record
from swapd.pool.lease import Place

LOADING_TEXT_EVERY_S = 1.0


class News:
    """One waiting stream's news. Call it every `every_s` seconds for what there is to send, if anything."""

    def __init__(
        self,
        record: Record,
        place: Callable[[str], Place | None],
        *,
        comment_every_s: float,
        loading_text: bool,
    ) -> None:
        self._record = record
        self._place = place
        self._loading_text = loading_text
        self._comment_every_s = comment_every_s
        self.every_s = min(LOADING_TEXT_EVERY_S, comment_every_s) if loading_text else comment_every_s
        self._silent_s = 0.0
        self._told = ""

    def __call__(self) -> bytes:
        self._silent_s += self.every_s
        place = self._record.place = None if self._record.granted else self._place(self._record.request_id)
        if self._loading_text and place is not None:
            text = f"{self._record.model_id}: {_standing(place)}\n"
            if text != self._told:
                chunk = self._chunk(text)
                self._told, self._silent_s = text, 0.0
                return chunk
        if self._silent_s < self._comment_every_s:
            return b""
        self._silent_s = 0.0
        return f": {self._comment(place)}\n\n".encode()

    def _comment(self, place: Place | None) -> str:
        if self._record.granted:
            return f"running on {self._record.model_id}"
        if place is None:
            return f"waiting for {self._record.model_id}"
        return f"waiting for {self._record.model_id}, {_standing(place)}"

    def _chunk(self, text: str) -> bytes:
        """A chunk of a streamed chat, as OpenAI has it; `reasoning_content` as llama-server and DeepSeek do."""
        delta = {"reasoning_content": text} if self._told else {"role": "assistant", "reasoning_content": text}
        chunk = {
            "id": f"chatcmpl-{self._record.request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._record.model_id,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}],
        }
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _standing(place: Place) -> str:
    said = f"position {place.position}, {place.state}"
    return said if place.expected_wait_s is None else f"{said}, about {place.expected_wait_s:.0f} s"
