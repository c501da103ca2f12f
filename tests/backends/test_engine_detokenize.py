from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.engine.detokenize import TextStream, find_stop, held_back


def stream(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = TextStream(stops)
    out: list[str] = []
    for piece in pieces:
        new, stopped = text.push(piece)
        out.append(new)
        if stopped:
            return out, True
    out.append(text.finish())
    return out, False


def test_a_character_cut_in_the_middle_waits_for_its_other_half() -> None:
    snowman = "☃".encode()
    assert stream([b"a", snowman[:1], snowman[1:2], snowman[2:] + b"b"]) == (["a", "", "", "☃b", ""], False)


def test_bytes_that_are_no_character_become_the_replacement_character() -> None:
    assert stream([b"a\xff", b"b"]) == (["a�", "b", ""], False)
    assert stream([b"a", "☃".encode()[:2]]) == (["a", "", "�"], False)


def test_a_stop_string_across_tokens_is_taken_out_with_all_that_follows() -> None:
    assert stream([b"one", b" ST", b"O", b"P two"], ("STOP",)) == (["one", " ", "", ""], True)


def test_a_beginning_that_turns_out_to_be_no_stop_string_is_given_back() -> None:
    assert stream([b"one ST", b"ART"], ("STOP",)) == (["one ", "START", ""], False)
    assert stream([b"one ST"], ("STOP",)) == (["one ", "ST"], False)


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert stream([b"a cat and a dog"], ("dog", "cat")) == (["a "], True)


def test_overlapping_beginnings_hold_back_the_longest() -> None:
    assert held_back("xaab", ("aabc", "bd")) == 3
    assert held_back("aaa", ("aab",)) == 2
    assert held_back("none", ("STOP",)) == 0


def test_a_stop_string_of_several_byte_characters_is_found() -> None:
    end = "終わり".encode()
    pieces = [bytes([byte]) for byte in b"ok " + end + b"!"]
    out, stopped = stream(pieces, ("終わり",))
    assert ("".join(out), stopped) == ("ok ", True)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert stream([b"abc"], ("",)) == (["abc", ""], False)


@given(
    text=st.text(alphabet="ab☃", max_size=30),
    stops=st.lists(st.text(alphabet="ab☃", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_however_the_bytes_are_cut_the_text_ends_before_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    data, pieces, start = text.encode(), [], 0
    for cut in cuts:
        pieces.append(data[start : start + cut])
        start += cut
    pieces.append(data[start:])
    out, stopped = stream(pieces, tuple(stops))
    position = find_stop(text, stops)
    assert stopped == (position is not None)
    if not stopped:
        assert "".join(out) == text
        return
    # A stream cannot know of an earlier match that begins after a shorter one has already ended.
    shown = "".join(out)
    assert text.startswith(shown)
    assert any(text.startswith(stop, len(shown)) for stop in stops)
    assert find_stop(shown, stops) is None


def test_the_longest_stop_string_where_a_text_was_cut_is_told() -> None:
    text = TextStream(("EN", "END", "x"))
    assert text.push(b"a") == ("a", False)
    assert text.stopped_by is None
    assert text.push(b"bEND") == ("b", True)
    assert text.stopped_by == "END"
