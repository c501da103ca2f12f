"""What each key may use, and when it is told to come again."""

from __future__ import annotations

import datetime

import pytest
from msgspec import structs

from swapd.config.keys import ApiKey, digest
from swapd.errors import KeyLimitError, UnauthorizedError
from swapd.http.keyring import ASSUMED_ANSWER_TOKENS, Holder, Keyring

DAY = datetime.date(2027, 1, 31)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def keyring(clock: Clock, **fields: object) -> Keyring:
    key = ApiKey(name="ann", digest=digest("k"), **fields)  # type: ignore[arg-type]
    return Keyring({key.digest: key}, clock, lambda: 1.0)


def holder(clock: Clock, **fields: object) -> Holder:
    return keyring(clock, **fields).find("k")


def test_only_the_key_itself_is_found():
    ring = keyring(Clock())
    assert ring.find("k").key.name == "ann"
    for other in ("", "K", "k ", "ann", digest("k").hex(), "k\udce9"):
        with pytest.raises(UnauthorizedError, match="not known here"):
            ring.find(other)


def test_an_expired_key_is_refused_by_name():
    key = ApiKey(name="ann", digest=digest("k"), expires=DAY)
    after = datetime.datetime(2027, 2, 1, tzinfo=datetime.UTC).timestamp()
    ring = Keyring({key.digest: key}, Clock(), lambda: after)
    with pytest.raises(UnauthorizedError, match="ann has expired on 2027-01-31"):
        ring.find("k")


def test_a_key_has_so_many_requests_at_once_and_hears_when_one_usually_ends():
    clock = Clock()
    ann = holder(clock, max_requests=2)
    with ann.running():
        clock.now += 8
    with ann.running(), ann.running():
        with pytest.raises(KeyLimitError, match="2 requests at once") as refused:
            with ann.running():
                pass
        assert refused.value.retry_after_s == 4.0
    with ann.running():
        pass


def test_requests_of_a_minute_are_counted_when_they_are_let_in():
    clock = Clock()
    ann = holder(clock, requests_per_minute=2)
    for _ in range(2):
        with ann.running():
            pass
    with pytest.raises(KeyLimitError, match="2 requests a minute") as refused, ann.running():
        pass
    assert refused.value.retry_after_s == pytest.approx(30.0)
    clock.now += 30
    with ann.running():
        pass


def test_tokens_are_taken_by_estimate_and_put_right_when_counted():
    clock = Clock()
    ann = holder(clock, tokens_per_minute=1000)
    charge = ann.charge(400, None)
    assert charge is not None
    with pytest.raises(KeyLimitError, match="1000 tokens a minute") as refused:
        ann.charge(400, None)
    assert refused.value.retry_after_s == pytest.approx((2 * (400 + ASSUMED_ANSWER_TOKENS) - 1000) * 60 / 1000)
    charge.counted(100)
    assert ann.charge(400, 10) is not None
    charge.counted(5000)
    with pytest.raises(KeyLimitError) as refused:
        ann.charge(1, 0)
    assert refused.value.retry_after_s == pytest.approx((5000 + 410 + 1 - 1000) * 60 / 1000)


def test_without_limits_nothing_is_counted():
    ann = holder(Clock())
    assert ann.charge(10**9, None) is None
    with ann.running(), ann.running():
        pass


def test_a_reload_keeps_accounts_changes_limits_and_drops_who_is_gone():
    clock = Clock()
    ring = keyring(clock, requests_per_minute=2)
    ann = ring.find("k")
    with ann.running(), ann.running():
        ring.replace({ann.key.digest: structs.replace(ann.key, requests_per_minute=3, name="anna")})
        assert ring.find("k") is ann
        with ann.running():
            pass
        with pytest.raises(KeyLimitError, match="anna may have 3 requests a minute"), ann.running():
            pass
        ring.replace({})
        with pytest.raises(UnauthorizedError):
            ring.find("k")
