"""Who may come in: the keys of `server`, and the file of API keys."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from swapd.config.keys import ApiKey, Scope, digest, entry_text, load_keys, parse_keys
from swapd.config.load import parse
from swapd.config.problems import ConfigError

SECRET = "sk-swapd-" + "AbC123_-" * 5
HASH = f"sha256:{digest(SECRET).hex()}"
FILE = Path("/etc/swapd/keys")


def server(text: str, backends):
    return parse(f"server: {text}\nmodels: {{}}", Path("/etc/swapd/config.yaml"), backends).server


def keys_of(text: str) -> list[ApiKey]:
    return list(parse_keys(text, FILE).by_digest.values())


def test_the_file_of_keys_is_found_from_the_configuration_or_among_systemds_credentials(backends):
    assert server("{keys: keys}", backends).keys == Path("/etc/swapd/keys")
    assert server("{keys: $CREDENTIALS_DIRECTORY/keys}", backends).keys == Path("$CREDENTIALS_DIRECTORY/keys")
    assert server("{keys: null}", backends).keys is None


def test_names_of_hosts_are_kept_in_lower_case_once(backends):
    assert server("{hosts: [GPU.local, gpu.local, box]}", backends).hosts == ("gpu.local", "box")
    assert server("{cors_origins: ['*', 'http://[::1]:3000', 'app://obsidian.md']}", backends).cors_origins[0] == "*"


def test_a_collector_is_an_address_with_or_without_port_and_path(backends):
    assert server("{}", backends).otlp_endpoint is None
    for url in ("http://127.0.0.1:4318", "https://otel.example.org/in", "http://[::1]:4318"):
        assert server(f"{{otlp_endpoint: '{url}'}}", backends).otlp_endpoint == url


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("{keys: $HOME/keys}", "server.keys", "variable"),
        ("{keys: $CREDENTIALS_DIRECTORY/../x}", "server.keys", "NAME"),
        ("{keys: $CREDENTIALS_DIRECTORY/}", "server.keys", "NAME"),
        ("{hosts: [a b]}", r"server.hosts\[0\]", "host's name"),
        ("{hosts: [box:8686]}", r"server.hosts\[0\]", "without a port"),
        ("{hosts: '*'}", "server.hosts", "list"),
        ("{cors_origins: [chat.example.org]}", r"server.cors_origins\[0\]", "no origin"),
        ("{cors_origins: ['https://chat.example.org/']}", r"server.cors_origins\[0\]", "no origin"),
        ("{cors_origins: ['null']}", r"server.cors_origins\[0\]", "no origin"),
        ("{cors_origins: ['http://Chat.example.org']}", r"server.cors_origins\[0\]", "no origin"),
        ("{open_to_network: yes}", "server.open_to_network", "true"),
        ("{otlp_endpoint: 127.0.0.1:4318}", "server.otlp_endpoint", "http://HOST:PORT"),
        ("{otlp_endpoint: 'http://a b/'}", "server.otlp_endpoint", "http://HOST:PORT"),
        ("{max_connections: 0}", "server.max_connections", "1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_key(text, key, what, backends):
    with pytest.raises(ConfigError, match=rf":1: {key}: .*{what}"):
        server(text, backends)


def test_an_entry_says_what_a_key_may():
    (key,) = keys_of(
        f"webui:\n  hash: {HASH}\n  scopes: [inference, metrics]\n  models: [qwen]\n  priority: -3\n  weight: 2.5\n"
        "  per_user: true\n  structured: false\n  max_requests: 4\n  requests_per_minute: 60\n"
        "  tokens_per_minute: 1000\n  expires: 2027-01-31\n"
    )
    assert key == ApiKey(
        name="webui",
        digest=digest(SECRET),
        scopes=(Scope.INFERENCE, Scope.METRICS),
        models=("qwen",),
        priority=-3,
        weight=2.5,
        per_user=True,
        structured=False,
        max_requests=4,
        requests_per_minute=60,
        tokens_per_minute=1000,
        expires=datetime.date(2027, 1, 31),
    )
    assert keys_of(entry_text(key)) == [key]


def test_an_entry_of_a_hash_alone_is_for_inference_with_every_model():
    (key,) = keys_of(f"1e5:\n  hash: {HASH}\n".replace("1e5", '"1e5"'))
    assert [scope for scope in Scope if key.allows(scope)] == [Scope.INFERENCE]
    assert key.may_use("any", ())
    assert keys_of(entry_text(key)) == [key]


def test_admin_includes_looking_and_nothing_else_is_included():
    admin, metrics = (keys_of(f"a: {{hash: '{HASH}', scopes: [{scope}]}}")[0] for scope in ("admin", "metrics"))
    assert [scope for scope in Scope if admin.allows(scope)] == [Scope.METRICS, Scope.ADMIN]
    assert [scope for scope in Scope if metrics.allows(scope)] == [Scope.METRICS]


def test_a_key_is_taken_until_its_last_day_has_ended():
    (key,) = keys_of(f"a: {{hash: '{HASH}', expires: 2027-01-31}}")
    end = datetime.datetime(2027, 2, 1, tzinfo=datetime.UTC).timestamp()
    assert not key.has_expired(end - 1)
    assert key.has_expired(end)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "is empty"),
        ("# nothing\n", 1, "is empty"),
        ("{}", 1, "has no keys"),
        ("- a\n", 1, ""),
        (f"a: {{hash: '{HASH}'}}\na: {{hash: '{HASH}'}}", 2, "twice"),
        (f"a: {{hash: '{HASH}'}}\nb: {{hash: '{HASH}'}}", 2, "the same hash as a"),
        ("a: {scopes: [admin]}", 1, "has no hash"),
        (f"a:\n  hash: {HASH}\n  scope: [admin]", 3, "did you mean scopes"),
        (f"a:\n  hash: {HASH}\n  scopes: [root]", 3, "inference, metrics, admin"),
        (f"a:\n  hash: {HASH}\n  weight: 0", 3, "0.01 to 100"),
        (f"a:\n  hash: {HASH}\n  weight: .inf", 3, "finite"),
        (f"a:\n  hash: {HASH}\n  priority: 101", 3, "-100 to 100"),
        (f"a:\n  hash: {HASH}\n  max_requests: 0", 3, "from 1"),
        (f"a:\n  hash: {HASH}\n  expires: 2027-02-30", 3, "a day"),
        (f"a/b: {{hash: '{HASH}'}}", 1, "a key's name"),
        ("a: {hash: 'sha256:abc'}", 1, "64 hexadecimal"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_line(text, line, what):
    with pytest.raises(ConfigError, match=rf"^/etc/swapd/keys:{line}: ") as refused:
        parse_keys(text, FILE)
    assert what in str(refused.value)


@pytest.mark.parametrize(
    "text", [f"a: {SECRET}", f"a: {{hash: {SECRET}}}", f"a: [{SECRET}]", f"a: {{hash: [{SECRET}]}}"]
)
def test_a_key_that_was_put_where_its_hash_belongs_is_not_shown(text):
    with pytest.raises(ConfigError) as refused:
        parse_keys(text, FILE)
    assert SECRET[:20] not in str(refused.value)


def test_a_file_is_read_with_the_state_it_had(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"a: {{hash: '{HASH}'}}\n")
    keys = load_keys(path)
    assert keys.identity is not None
    assert list(keys.by_digest) == [digest(SECRET)]
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(tmp_path / "none")
