"""`swapd profile` against a scripted daemon on a real socket."""

from __future__ import annotations

import pytest
from support.admin_script import Script, status_document

from swapd.cli import main

Captured = pytest.CaptureFixture[str]

GAMING = {
    "name": "gaming",
    "active": True,
    "disable": ["big"],
    "pins": {"v": "small", "x": None},
    "idle_unload_s": 60.0,
}
PROFILES = {"active": "gaming", "profiles": [GAMING, {"name": "work", "active": False, "description": "all of it"}]}


def test_profiles_are_listed_with_what_they_change(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/profiles", PROFILES)
    assert main(["profile", "--url", daemon.url]) == 0
    out = capsys.readouterr().out
    assert "v is small, x is off, big is disabled, idle models leave after 60.0 s" in out
    assert [line.split()[0] for line in out.splitlines() if line[:1] in "gw"] == ["gaming", "work"]


def test_a_profile_is_switched_on_and_off(daemon: Script, capsys: Captured) -> None:
    daemon.answer("PUT /swapd/v1/profiles/active", PROFILES)
    assert main(["profile", "gaming", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "the profile gaming is in force\n"
    assert daemon.bodies == [{"profile": "gaming"}]
    daemon.answer("PUT /swapd/v1/profiles/active", PROFILES | {"active": None})
    assert main(["profile", "--off", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "no profile is in force\n"
    assert main(["profile", "gaming", "--off", "--url", daemon.url]) == 1


def test_ps_says_which_profile_is_in_force(daemon: Script, capsys: Captured) -> None:
    config = {"path": "c.yaml", "loaded_ago_s": 1.0, "error": None, "profile": "gaming"}
    daemon.answer("GET /swapd/v1/status", status_document(config=config))
    assert main(["ps", "--url", daemon.url]) == 0
    assert "the profile gaming is in force" in capsys.readouterr().out
