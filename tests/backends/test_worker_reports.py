"""The writing side of the control channel: nothing lost, nothing unbounded, nobody held up."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest

from backends.control import Loading, Message, Progress, Ready, Usage, WarmingUp, decode, encode
from backends.llama_cpp.reports import INTERVAL_S, MAX_UNSENT_BYTES, LoadProgress, Outbox, Reporter


def said(outbox: Outbox) -> list[Message]:
    lines = b""
    while pending := outbox.pending():
        lines += pending
        outbox.sent(len(pending))
    return [decode(line) for line in lines.splitlines()]


def test_of_several_progress_messages_the_latest_is_sent() -> None:
    outbox = Outbox()
    for batches in range(100):
        outbox.add(Progress(batches))
    outbox.add(Usage("a", 1, 0, 1))
    assert said(outbox) == [Usage("a", 1, 0, 1), Progress(99)]
    assert said(outbox) == []


def test_load_progress_never_follows_what_comes_after_the_load() -> None:
    outbox = Outbox()
    outbox.add(Loading(0.5))
    outbox.add(WarmingUp())
    outbox.add(Ready(10, 1))
    assert said(outbox) == [WarmingUp(), Ready(10, 1)]


def test_a_message_sent_in_part_is_finished_first() -> None:
    outbox = Outbox()
    outbox.add(Usage("a", 1, 0, 1))
    outbox.sent(5)
    outbox.add(Progress(3))
    assert outbox.pending() == encode(Usage("a", 1, 0, 1))[5:]


def test_a_reader_that_stopped_for_good_is_an_error_and_not_a_growing_buffer() -> None:
    outbox = Outbox()

    def never_stop() -> None:
        for number in itertools.count():
            outbox.add(Usage(str(number), 1, 0, 1))

    with pytest.raises(BufferError, match="unread"):
        never_stop()
    assert len(outbox.pending()) < MAX_UNSENT_BYTES + 1000


def test_load_progress_is_told_a_few_times_a_second_and_at_its_end() -> None:
    sent: list[Message] = []
    now_s = 0.0
    progress = LoadProgress(sent.append, lambda: now_s)
    for step in range(100):
        now_s = step * INTERVAL_S / 10
        progress(step / 100)
    progress(1.0)
    assert sent == [Loading(step / 100) for step in range(0, 100, 10)] + [Loading(1.0)]


async def test_every_usage_arrives_once_a_slow_reader_reads_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reporter = Reporter(ours)
        reporter.attach(asyncio.get_running_loop())
        usages = [Usage(f"request-{number}", number, 0, 1) for number in range(2000)]
        for number, usage in enumerate(usages):
            reporter.send(usage)
            reporter.send(Progress(number))
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        received: list[Message] = []
        while Progress(1999) not in received[-1:]:
            received.append(decode(await reader.readline()))
        assert [message for message in received if isinstance(message, Usage)] == usages
        assert len(received) < 2 * len(usages)
        writer.close()
        await writer.wait_closed()


def test_last_words_are_waited_for_within_a_bound() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reporter = Reporter(ours)
        for number in range(1000):
            reporter.send(Usage(str(number), 1, 0, 1))
        reporter.drain(0.01)
        theirs.setblocking(False)
        assert theirs.recv(65536).startswith(encode(Usage("0", 1, 0, 1)))


def test_a_closed_other_end_is_left_to_the_lifeline() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        Reporter(ours).send(Ready(1, 1))
