import random

import pytest

from swapd.http.sse import EventTooLargeError, Framer, is_error, payloads

STREAM = (
    b": hello\n\n"
    b'data: {"choices":[{"delta":{"content":"a\\n\\nb"}}]}\n\n'
    b'id: 7\r\ndata: {"x":1}\r\n\r\n'
    b'data: {"text":"data: [DONE]"}\n\r\n'
    b"data: [DONE]\n\n"
)
ENDS = [len(b": hello\n\n")]
for _event in (
    b'data: {"choices":[{"delta":{"content":"a\\n\\nb"}}]}\n\n',
    b'id: 7\r\ndata: {"x":1}\r\n\r\n',
    b'data: {"text":"data: [DONE]"}\n\r\n',
    b"data: [DONE]\n\n",
):
    ENDS.append(ENDS[-1] + len(_event))


def handed_out(pieces: list[bytes]) -> list[bytes]:
    framer = Framer()
    out = [framer.feed(piece).whole for piece in pieces]
    assert framer.done
    return out


def test_whole_events_come_out_under_every_split_in_two() -> None:
    for cut in range(len(STREAM) + 1):
        first, second = handed_out([STREAM[:cut], STREAM[cut:]])
        assert first + second == STREAM
        assert len(first) in (0, *ENDS), f"half an event after a cut at {cut}"


def test_whole_events_come_out_byte_by_byte_and_under_random_splits() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    bytewise = [STREAM[at : at + 1] for at in range(len(STREAM))]
    cuts = [sorted(rng.sample(range(1, len(STREAM)), 6)) for _ in range(500)]
    splits = [[STREAM[a:b] for a, b in zip([0, *cut], [*cut, len(STREAM)], strict=True)] for cut in cuts]
    for pieces in [bytewise, *splits]:
        total = 0
        for out in handed_out(pieces):
            total += len(out)
            assert total in (0, *ENDS)
        assert total == len(STREAM)


def test_only_events_with_data_are_counted() -> None:
    frames = Framer().feed(b": comment\n\nevent: x\ndata: 1\n\ndata: 2\n\n")
    assert frames.data_events == 2


def test_done_inside_a_text_is_not_the_end() -> None:
    framer = Framer()
    framer.feed(b'data: {"text":"data: [DONE]"}\n\ndata: x [DONE]\n\n')
    assert not framer.done


def test_nothing_after_done_is_handed_out() -> None:
    framer = Framer()
    assert framer.feed(b"data: [DONE]\n\ndata: more\n\n").whole == b"data: [DONE]\n\n"
    assert framer.feed(b"data: more\n\n").whole == b""


def test_an_event_that_never_ends_is_refused_at_the_bound() -> None:
    framer = Framer(max_event_bytes=100)
    framer.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLargeError, match="100 bytes"):
        framer.feed(b"x" * 5)


def test_a_last_event_that_is_an_error_is_known_as_one() -> None:
    framer = Framer()
    framer.feed(b'data: {"choices":[]}\n\ndata: {"error":{"message":"full"}}\n\n')
    assert framer.told_error
    framer.feed(b'data: {"choices":[]}\n\n')
    assert not framer.told_error


def test_payloads_are_the_data_of_events_without_comments_and_the_end() -> None:
    whole = b': hello\n\ndata: {"a":1}\n\ndata:{"b":2}\r\n\r\nevent: x\ndata: {"c":\ndata: 3}\n\ndata: [DONE]\n\n'
    assert list(payloads(whole)) == [b'{"a":1}', b'{"b":2}', b'{"c":\n3}']


def test_only_an_object_that_begins_with_error_is_one() -> None:
    assert is_error(b'{"error":{"message":"x"}}')
    assert not is_error(b'{"choices":[{"delta":{"content":"error"}}]}')
