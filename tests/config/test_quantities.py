from __future__ import annotations

from pathlib import Path

import pytest

from swapd.config.address import TcpAddress, UnixAddress, parse_address
from swapd.config.quantities import SIZE_UNITS, parse_share, parse_size, parse_time, spell_size, spell_time


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("123", 123), ("1KiB", 1024), ("1.5GiB", 3 * 2**29), ("22GiB", 22 * 2**30), ("8GB", 8 * 10**9)],
)
def test_sizes_become_bytes(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1G", "1GiB"),
        ("1gb", "1GB"),
        ("1 GiB", "1GiB"),
        ("+1GiB", "1GiB"),
        ("2m", "2MiB"),
        ("3K", "3KiB"),
        ("4.5", "4.5GiB"),
    ],
)
def test_a_misspelled_size_is_answered_with_the_right_spelling(text, right):
    with pytest.raises(ValueError, match=f"write {right}"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("0s", 0.0), ("90s", 90.0), ("1.5m", 90.0), ("10m", 600.0), ("2h", 7200.0)]
)
def test_times_become_seconds(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1:30", "90s"),
        ("1:00:00", "3600s"),
        ("90", "90s"),
        ("1h30m", "90m"),
        ("10M", "10m"),
        ("5 min", "5m"),
        ("1 day", "1d"),
        ("1d12h", "36h"),
    ],
)
def test_a_misspelled_time_is_answered_with_the_right_spelling(text, right):
    with pytest.raises(ValueError, match=f"write {right}"):
        parse_time(text)


@pytest.mark.parametrize("text", ["", "s", "1e3s", "1_000s", "٣s", "9" * 5000, "1" * 30 + "s", "nan", "-1GiB", "0x1s"])
def test_other_texts_are_no_quantities(text):
    for read in (parse_size, parse_time, parse_share):
        with pytest.raises(ValueError, match=r"."):
            read(text if read is not parse_size or not text.isdigit() else text + "x")


def test_shares_are_above_nothing_and_at_most_all():
    assert (parse_share("80%"), parse_share("0.5%"), parse_share("100%")) == (0.8, 0.005, 1.0)
    for text in ("0%", "100.1%", "80", "80 %", "-5%"):
        with pytest.raises(ValueError, match=r"share"):
            parse_share(text)


def test_spellings_are_read_back_as_the_same_number():
    for size_bytes in (0, 1, 1023, *SIZE_UNITS.values(), 3 * 2**29):
        assert parse_size(spell_size(size_bytes)) == size_bytes
    for seconds in (0.0, 0.25, 1.0, 59.0, 60.0, 90.0, 120.0, 3600.0, 86400.0):
        assert parse_time(spell_time(seconds)) == seconds


def test_addresses_are_typed():
    assert parse_address("127.0.0.1:8686") == TcpAddress("127.0.0.1", 8686)
    assert parse_address("[::1]:0") == TcpAddress("::1", 0)
    assert parse_address("my-host.lan:80") == TcpAddress("my-host.lan", 80)
    assert parse_address("unix:/run/swapd.sock") == UnixAddress(Path("/run/swapd.sock"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":1",
        "h",
        "h:",
        "h:x",
        "h:65536",
        "h:٣",
        "::1:1",
        "[x]:1",
        "a b:1",
        "unix:",
        "unix:r",
        "unix:/" + "x" * 107,
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)
