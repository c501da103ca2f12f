"""Who asks, and how urgent that may be."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from swapd.errors import BadRequestError
from swapd.http.caller import Caller, identify

USER = "X-OpenWebUI-User-Id"


def caller(client_header: str | None = None, **headers: str) -> Caller:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return identify(make_mocked_request("GET", "/", headers=named), client_header)


def test_clients_are_told_apart_by_key_else_by_address() -> None:
    nobody, one, same, basic = (
        caller(),
        caller(Authorization="Bearer k1"),
        caller(Authorization="bearer  k1"),
        caller(Authorization="Basic k1"),
    )
    assert one == same != nobody == basic
    assert "k1" not in one.client


def test_a_configured_header_names_the_client_behind_a_shared_key() -> None:
    first = caller(USER, Authorization="Bearer shared", X_OpenWebUI_User_Id="ann@example.org")
    second = caller(USER, Authorization="Bearer shared", X_OpenWebUI_User_Id="bob")
    assert (first.client, second.client) == ("user-ann@example.org", "user-bob")
    assert caller(USER, Authorization="Bearer shared") == caller(Authorization="Bearer shared")


def test_a_header_that_is_not_configured_names_nobody() -> None:
    assert caller(X_OpenWebUI_User_Id="ann") == caller()


@pytest.mark.parametrize("name", ["a b", "x" * 65, "Jos\u00e9"])
def test_a_name_that_is_long_or_odd_is_kept_as_a_hash(name: str) -> None:
    client = caller(USER, X_OpenWebUI_User_Id=name).client
    assert client.startswith("user-")
    assert len(client) == len("user-") + 12


@pytest.mark.parametrize(("asked", "priority"), [("-3", -3), (" -100 ", -100), ("0", 0), ("7", 0), ("+100", 0)])
def test_the_priority_header_can_only_lower(asked: str, priority: int) -> None:
    assert caller(X_Swapd_Priority=asked).priority == priority


@pytest.mark.parametrize("asked", ["", "high", "1.5", "-101", "101", "9" * 5000, "\u0663"])
def test_a_priority_that_is_no_number_in_range_is_refused(asked: str) -> None:
    with pytest.raises(BadRequestError, match="expected a whole number from -100 to 100") as refused:
        caller(X_Swapd_Priority=asked)
    assert refused.value.param == "X-Swapd-Priority"
