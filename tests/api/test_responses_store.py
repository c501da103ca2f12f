"""Stored responses: a client's own, within a bound."""

from __future__ import annotations

from swapd.api.responses.store import ResponseStore, Stored


def of(size_bytes: int) -> Stored:
    """A response that counts as this much."""
    empty = Stored(b"", b"").size_bytes
    return Stored(b"x" * (size_bytes - empty), b"")


def test_a_response_is_its_clients_alone() -> None:
    store = ResponseStore()
    assert store.keep("me", "resp_1", of(1000))
    assert store.find("me", "resp_1") == of(1000)
    assert store.find("you", "resp_1") is None
    assert not store.forget("you", "resp_1")
    assert store.forget("me", "resp_1")
    assert store.find("me", "resp_1") is None
    assert not store.forget("me", "resp_1")


def test_the_least_recently_used_makes_room() -> None:
    store = ResponseStore(max_bytes=4000)
    for name in ("a", "b", "c", "d"):
        assert store.keep("me", name, of(1000))
    assert store.find("me", "a") is not None
    assert store.keep("me", "e", of(1000))
    assert [name for name in "abcde" if store.find("me", name)] == ["a", "c", "d", "e"]


def test_the_client_that_holds_the_most_makes_room_for_the_others() -> None:
    store = ResponseStore(max_bytes=4000)
    assert store.keep("small", "x", of(600))
    for name in ("a", "b", "c"):
        assert store.keep("large", name, of(1000))
    assert store.keep("third", "y", of(1000))
    assert [name for name in "abc" if store.find("large", name)] == ["b", "c"]
    assert store.find("small", "x") is not None


def test_their_number_is_bound_too() -> None:
    store = ResponseStore(max_responses=2)
    for name in ("a", "b", "c"):
        assert store.keep("me", name, of(1000))
    assert [name for name in "abc" if store.find("me", name)] == ["b", "c"]


def test_what_is_too_large_is_not_taken_and_pushes_nothing_out() -> None:
    store = ResponseStore(max_bytes=4000)
    assert store.keep("me", "a", of(1000))
    assert not store.keep("me", "b", of(1001))
    assert store.find("me", "a") is not None
    assert store.find("me", "b") is None
