"""`swapd key new`, and how the client commands send a key."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from support.admin_script import Script

from swapd.cli import main
from swapd.cli.keys import client_key
from swapd.cli.output import CommandError
from swapd.config.keys import Scope, digest, load_keys, parse_keys

KEY = re.compile(r"sk-swapd-[A-Za-z0-9_-]{43}")


def test_a_new_key_is_printed_once_with_the_entry_to_add(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "new", "webui", "--model", "qwen", "--model", "org/x: y", "--scope", "inference"]) == 0
    out, err = capsys.readouterr()
    (secret,) = KEY.findall(out)
    assert secret not in err
    (key,) = parse_keys(out.split("\n\n")[1], Path("keys")).by_digest.values()
    assert (key.name, key.digest, key.models) == ("webui", digest(secret), ("qwen", "org/x: y"))


def test_entries_are_appended_to_a_file_that_stays_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    limits = ["--max-requests", "4", "--requests-per-minute", "60", "--tokens-per-minute", "9000"]
    assert main(["key", "new", "true", "-o", str(path), "--scope", "admin", "--scope", "metrics", *limits]) == 0
    first = capsys.readouterr().out.strip()
    assert KEY.fullmatch(first)
    path.write_text(path.read_text().rstrip("\n"))
    limits = ["--priority", "-5", "--weight", "0.5", "--per-user", "--no-structured"]
    limits += ["--expires", "2027-01-31"]
    assert main(["key", "new", "b", "-o", str(path), *limits]) == 0
    second = capsys.readouterr().out.strip()
    keys = load_keys(path).by_digest
    one, two = keys[digest(first)], keys[digest(second)]
    assert (one.name, one.scopes, one.max_requests) == ("true", (Scope.ADMIN, Scope.METRICS), 4)
    assert (one.requests_per_minute, one.tokens_per_minute) == (60, 9000)
    assert (two.name, two.priority, two.weight, str(two.expires)) == ("b", -5, 0.5, "2027-01-31")
    assert two.per_user
    assert (one.structured, two.structured) == (True, False)
    assert first not in path.read_text()
    assert not stat.S_IMODE(path.stat().st_mode) & 0o022


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["a b"], "a key's name"),
        (["a", "--scope", "root"], "must be one of inference, metrics, admin"),
        (["a", "--priority", "101"], "-100 to 100"),
        (["a", "--weight", "0"], "0.01 to 100"),
        (["a", "--weight", "nan"], "0.01 to 100"),
        (["a", "--max-requests", "0"], "from 1"),
        (["a", "--expires", "tomorrow"], "a day such as"),
        (["a", "--model", ""], "empty"),
    ],
)
def test_a_key_that_the_file_could_not_hold_is_not_made(
    argv: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    for place in ([], ["-o", str(path)]):
        assert main(["key", "new", *argv, *place]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert what in err
    assert not path.exists()


def test_a_file_that_is_wrong_or_has_the_name_already_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    assert main(["key", "new", "a", "-o", str(path)]) == 0
    capsys.readouterr()
    before = path.read_text()
    assert main(["key", "new", "a", "-o", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(rf"{path}:\d+: a: ", err)
    assert path.read_text() == before
    path.write_text("nonsense")
    assert main(["key", "new", "b", "-o", str(path)]) == 1
    assert capsys.readouterr().out == ""
    assert path.read_text() == "nonsense"


def test_the_key_to_send_comes_from_a_file_or_from_the_environment(tmp_path: Path) -> None:
    for name in ("given", "named"):
        (tmp_path / name).write_text(f"sk-{name}\n")
    variables = {"SWAPD_KEY_FILE": str(tmp_path / "named"), "SWAPD_API_KEY": "sk-itself"}
    assert client_key(tmp_path / "given", variables) == "sk-given"
    assert client_key(None, variables) == "sk-named"
    assert client_key(None, {"SWAPD_API_KEY": " sk-itself "}) == "sk-itself"
    assert client_key(None, {"SWAPD_API_KEY": "", "SWAPD_KEY_FILE": ""}) is None


def test_a_file_without_a_key_is_a_plain_failure_that_shows_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "k"
    for content, what in (
        (b"", "is empty"),
        (b"two words", "no API key"),
        (b"\xff", "cannot be read"),
        (b"a\x1bb", "no API"),
    ):
        path.write_bytes(content)
        with pytest.raises(CommandError, match=what) as refused:
            client_key(path, {})
        assert "words" not in str(refused.value)
    with pytest.raises(CommandError, match="No such file"):
        client_key(tmp_path / "none", {})


def test_client_commands_send_it(daemon: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "k"
    path.write_text("sk-swapd-mine\n")
    daemon.refuse("GET /swapd/v1/status", 401, "this API key is not known here")
    assert main(["ps", "--url", daemon.url, "--key-file", str(path)]) == 1
    assert capsys.readouterr().err == "swapd: this API key is not known here\n"
    assert daemon.keys == ["Bearer sk-swapd-mine"]


def test_check_reads_the_keys_too_unless_only_systemd_knows_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, keys = tmp_path / "c.yaml", tmp_path / "keys"
    config.write_text("server: {keys: keys}\nmodels: {}\n")
    assert main(["check", str(config)]) == 1
    assert capsys.readouterr().err.startswith(f"{keys}:1: file: cannot be read")
    assert main(["key", "new", "a", "-o", str(keys)]) == 0
    assert main(["check", str(config)]) == 0
    config.write_text("server: {keys: $CREDENTIALS_DIRECTORY/keys}\nmodels: {}\n")
    assert main(["check", str(config)]) == 0
