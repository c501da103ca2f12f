"""A worker's events on their way to one client: framed, timed, translated where the client speaks another dialect, and
where nothing has to wait, passed on in one call.

Owns the times between events. Must never send half an event, nor wait.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import msgspec

from swapd.api.translation import Translation
from swapd.errors import WorkerLostError
from swapd.http.foreign import ForeignAnswer
from swapd.http.record import Record
from swapd.http.sse import Framer, UntranslatableEventError, is_error, payloads
from swapd.http.stream import ClientStream
from swapd.observe.metrics import StreamTimers

UNBOOKED_GAPS = 32
"""Times between events that may be unknown to the metrics: one at a time they would cost more than the event."""


class EventFlow:
    """One stream. Leaving it books the times that are not booked yet."""

    def __init__(
        self,
        client: ClientStream,
        record: Record,
        timers: StreamTimers,
        translation: Translation | None = None,
        foreign: ForeignAnswer | None = None,
    ) -> None:
        self.kept = b""
        """Whole events that could not be sent at once."""
        self._client = client
        self._record = record
        self._timers = timers
        self._translation = translation
        self._foreign = foreign
        self._framer = Framer()
        self._last_s = record.arrived_s
        self._gaps_s: list[float] = []
        self.failure: Exception | None = None
        """Why `take` takes no more, if that is it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._book()

    @property
    def done(self) -> bool:
        """The stream's `[DONE]` was among the events."""
        return self._framer.done

    @property
    def told_error(self) -> bool:
        """The last event was the worker's own error."""
        return self._framer.told_error

    def events_in(self, data: bytes) -> bytes:
        """The whole events that `data` completes, as the client gets them.

        Raises `EventError`, and what a translation raises for an answer that it gives up.
        """
        frames = self._framer.feed(data)
        whole, data_events = frames.whole, frames.data_events
        if self._foreign is not None:
            whole, data_events = self._foreign.events(whole, data_events)
        if data_events:
            self._time(data_events)
        if self._translation is None or not frames.whole:
            return whole
        return self._translated(self._translation, whole)

    def stop(self) -> bytes:
        """What the client gets at the end of a stream in llama-server's own dialect, which has no `[DONE]`.

        Empty where that has come, or the stream is not whole.
        """
        ending = self._framer.stop()
        return ending if self._translation is None or not ending else self._translation.end()

    def _translated(self, translation: Translation, whole: bytes) -> bytes:
        parts = []
        for payload in payloads(whole):
            if is_error(payload):
                parts.append(translation.failure(WorkerLostError.status, msgspec.json.decode(payload)))
                continue
            try:
                parts.append(translation.event(payload))
            except (ValueError, RecursionError) as error:
                raise UntranslatableEventError(f"its answer cannot be translated: {error}") from error
        if self.done:
            parts.append(translation.end())
        return b"".join(parts)

    def take(self, data: bytes) -> bool:
        """Send the events that `data` completes at once. False if it is no longer that simple: see `kept`, `done`."""
        try:
            whole = self.events_in(data)
        except Exception as error:  # for the relay to raise: here it would end the connection to the worker
            self.failure = error
            return False
        if whole and not self._client.send_now(whole):
            self.kept = whole
        return not self.kept and not self.done

    def give_kept(self) -> bytes:
        """What `take` could not send; the caller's to send now."""
        kept, self.kept = self.kept, b""
        return kept

    def _time(self, count: int) -> None:
        """Note events that arrived together; the gap before them is shared out."""
        record = self._record
        age_s = record.age_s()
        now_s = record.arrived_s + age_s
        record.events += count
        if record.first_token_s is None:
            record.first_token_s = age_s
            self._timers.first_token(age_s)
            count, self._last_s = count - 1, now_s
        if count:
            self._gaps_s += [(now_s - self._last_s) / count] * count
        self._last_s = now_s
        if len(self._gaps_s) >= UNBOOKED_GAPS:
            self._book()

    def _book(self) -> None:
        for gap_s in self._gaps_s:
            self._timers.inter_token(gap_s)
        self._gaps_s.clear()
