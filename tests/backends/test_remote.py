"""How a server elsewhere is described: addresses, keys, and that a key is nowhere but in the headers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backends.address import Tls
from backends.base import InvalidModelError
from backends.registry import installed_backends
from backends.remote import RemoteBackend, RemoteSettings

KEY = "canary-sk-1234"


def settings(proxy: str = "https://rack:8443", **fields: object) -> RemoteSettings:
    return RemoteSettings(proxy=proxy, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("proxy", "shown", "port"),
    [
        ("https://api.example.com", "https://api.example.com", 443),
        ("https://api.example.com/v1/", "https://api.example.com", 443),
        ("https://example.com/api/v1", "https://example.com/api", 443),
        ("HTTP://Rack.lan:8000/", "http://rack.lan:8000", 8000),
        ("http://10.0.0.2", "http://10.0.0.2", 80),
        ("http://[fd00::1]:8686/x/y", "http://[fd00::1]:8686/x/y", 8686),
    ],
)
def test_an_address_is_read_as_people_write_it(proxy: str, shown: str, port: int) -> None:
    address = settings(proxy).address
    assert (str(address), address.port) == (shown, port)
    assert (address.tls is not None) == proxy.lower().startswith("https")


@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "rack:8000",
        "ftp://rack",
        "https://",
        "https://rack:0",
        "https://rack:99999",
        "https://rack:x",
        "https://rack/?key=1",
        "https://rack/#x",
        "https://rack/a b",
        "https://ra ck",
        "https://rack..lan",
        f"https://{'r' * 64}.lan",
        "https://[::zz]",
        "https://rack\r\nX: y",
        "https://rack/x\r\nX: y",
    ],
)
def test_what_is_no_address_is_refused_by_the_keys_name(proxy: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        settings(proxy)


def test_a_key_in_the_address_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="api_key_file") as refused:
        settings(f"https://user:{KEY}@rack")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"health": "v1/models"}, "health"),
        ({"health": "/x\r\ny"}, "health"),
        ({"api_key_file": Path("k"), "api_key_env": "K"}, "api_key_env"),
        ({"proxy": "http://rack", "ca_file": Path("c")}, "ca_file"),
        ({"proxy": "http://rack", "verify_tls": False}, "verify_tls"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(fields: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        settings(**fields)  # type: ignore[arg-type]


def test_it_holds_nothing_here_and_serves_what_the_settings_say() -> None:
    found = RemoteBackend().inspect(settings(n_parallel=32, embeddings=True, chat=False, n_ctx=4096))
    assert (found.footprint.total_bytes, found.elsewhere, found.reports_usage) == (0, True, False)
    assert (found.slots, found.n_ctx, found.n_gpu_layers) == (32, 4096, 0)
    assert (found.capabilities.embeddings, found.capabilities.chat) == (True, False)
    assert found.first_token_timeout_s == 600.0


def test_the_key_comes_from_a_file_and_goes_into_one_header(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    asked = settings(api_key_file=tmp_path / "key", ca_file=tmp_path / "ca", health="/health")
    peer = RemoteBackend().peer(asked)
    assert dict(peer.address.headers) == {"Authorization": f"Bearer {KEY}"}
    assert peer.address.tls == Tls(ca_file=tmp_path / "ca")
    assert (settings().address.takes_traces, settings(traceparent=True).address.takes_traces) == (False, True)
    assert peer.health_path == "/health"
    assert RemoteBackend().files(asked) == (tmp_path / "key", tmp_path / "ca")
    for shown in (repr(peer), str(peer.address), repr(asked), repr(RemoteBackend().inspect(asked))):
        assert KEY not in shown


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RACK_KEY", KEY)
    assert RemoteBackend().peer(settings(api_key_env="RACK_KEY", health="none")).health_path is None
    monkeypatch.delenv("RACK_KEY")
    with pytest.raises(InvalidModelError, match="RACK_KEY"):
        RemoteBackend().inspect(settings(api_key_env="RACK_KEY"))


@pytest.mark.parametrize(
    "content", [b"", b"  \n", KEY.encode() + b" x", KEY.encode() + b"\nX: y", b"\xff", b"k" * 20_000]
)
def test_a_file_that_is_no_key_is_a_verdict_that_does_not_repeat_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidModelError, match="api_key_file") as refused:
        RemoteBackend().inspect(settings(api_key_file=tmp_path / "key"))
    assert KEY not in str(refused.value)


def test_a_missing_file_is_a_verdict(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="cannot be read: No such file"):
        RemoteBackend().inspect(settings(api_key_file=tmp_path / "none"))


def test_it_is_installed_and_its_settings_have_no_place_for_a_key() -> None:
    assert isinstance(installed_backends()["remote"], RemoteBackend)
    assert {"api_key", "key", "token"}.isdisjoint(field.name for field in msgspec.structs.fields(RemoteSettings))
