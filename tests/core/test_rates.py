"""Token buckets: what a minute brings may be taken, and no more in the long run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.rates import Bucket


def test_a_full_bucket_gives_a_minutes_worth_at_once_and_then_says_when():
    bucket = Bucket.full(60, now_s=100.0)
    for _ in range(60):
        assert bucket.wait_s(1, 100.0) == 0
        bucket.take(1, 100.0)
    assert bucket.wait_s(1, 100.0) == pytest.approx(1.0)
    assert bucket.wait_s(30, 100.0) == pytest.approx(30.0)
    assert bucket.wait_s(30, 130.0) == 0


def test_more_than_it_holds_is_given_from_a_full_one_and_paid_off_later():
    bucket = Bucket.full(10, now_s=0.0)
    assert bucket.wait_s(25, 0.0) == 0
    bucket.take(25, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(96.0)
    assert bucket.wait_s(25, 0.0) == pytest.approx(150.0)


def test_what_was_too_much_is_given_back_but_never_beyond_full():
    bucket = Bucket.full(10, now_s=0.0)
    bucket.take(8, 0.0)
    bucket.take(-5, 0.0)
    assert bucket.level == 7
    bucket.take(-100, 0.0)
    assert bucket.level == 10


def test_another_rate_forgives_nothing():
    bucket = Bucket.full(10, now_s=0.0)
    bucket.take(10, 0.0)
    bucket.resize(100, 0.0)
    assert bucket.level == 90
    bucket.resize(10, 0.0)
    assert bucket.level == 0


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 40)), max_size=60), st.integers(1, 600))
def test_nobody_takes_more_than_a_full_bucket_and_the_rate_and_one_last_excess(asks, per_minute):
    bucket, now_s, taken, largest = Bucket.full(per_minute, 0.0), 0.0, 0.0, 0.0
    for pause_s, amount in asks:
        now_s += pause_s
        if bucket.wait_s(amount, now_s) == 0:
            bucket.take(amount, now_s)
            taken, largest = taken + amount, max(largest, amount)
    assert taken <= per_minute + per_minute * now_s / 60 + max(0.0, largest - per_minute) + 1e-6
