"""swapd usage, against a scripted daemon."""

from __future__ import annotations

import json

import pytest
from support.admin_script import Script

from swapd.cli import main

Captured = pytest.CaptureFixture[str]

DOCUMENT = {
    "by": "key",
    "since": 1000.0,
    "rows": [
        {
            "name": "desk\x1b[2J",
            "requests": 1200,
            "failed": 3,
            "cancelled": 1,
            "prompt_tokens": 250000,
            "cached_tokens": 200000,
            "completion_tokens": 31000,
            "waited_s": 0.25,
            "first_token_s": None,
            "total_s": 4.0,
        }
    ],
}


def test_usage_is_a_table(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/usage?by=key&since=86400.000s", DOCUMENT)
    assert main(["usage", "--by", "key", "--since", "1d", "--url", daemon.url]) == 0
    head, _, line = capsys.readouterr().out.splitlines()[:3]
    assert head.split()[:4] == ["KEY", "REQUESTS", "FAILED", "CANCELLED"]
    assert line.split() == [
        "desk\\x1b[2J",
        "1,200",
        "3",
        "1",
        "250,000",
        "200,000",
        "31,000",
        "0.2",
        "s",
        "-",
        "4.0",
        "s",
    ]


def test_usage_is_of_models_and_the_last_week_unless_asked_otherwise(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/usage?by=model&since=604800.000s", {"by": "model", "since": 0.0, "rows": []})
    assert main(["usage", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "no request has ended in the last 168.0 h\n"


def test_usage_as_json_is_the_daemons_document(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/usage?by=day&since=604800.000s", {**DOCUMENT, "by": "day"})
    assert main(["usage", "--by", "day", "--json", "--url", daemon.url]) == 0
    assert json.loads(capsys.readouterr().out) == {**DOCUMENT, "by": "day"}


@pytest.mark.parametrize("arguments", [["--by", "prompt"], ["--since", "yesterday"]])
def test_usage_refuses_what_it_does_not_know(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["usage", *arguments])
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err
