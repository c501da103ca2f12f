"""The keys of a foreign program: its words, its macros, where it listens, and the plan its guard gets."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from backends.address import TcpAddress, UnixAddress
from backends.base import InvalidModelError, LaunchOrder, Offload, Post
from backends.command import CommandBackend, CommandSettings, SleepSettings, program_environment
from backends.guard.plan import PLAN_VARIABLE, GuardPlan, read_plan
from backends.registry import installed_backends
from swapd.config.load import parse
from swapd.config.problems import ConfigError

BACKEND = CommandBackend()


def order(**fields: object) -> LaunchOrder:
    words = {"model_id": "my model", "socket_path": Path("/run/w.sock"), "control_fd": 3, "offload": Offload()}
    return LaunchOrder(**(words | {"port": 18123} | fields))  # type: ignore[arg-type]


def planned(settings: CommandSettings, **fields: object) -> GuardPlan:
    return read_plan(BACKEND.launch(settings, order(**fields)).env)


def test_it_is_an_installed_backend() -> None:
    assert isinstance(installed_backends()["command"], CommandBackend)


def test_a_text_is_cut_into_words_as_a_shell_would_and_no_shell_sees_it() -> None:
    plan = planned(CommandSettings(cmd="serve --name '${MODEL_ID}' --port ${PORT} $(reboot) ; x"))
    assert plan.argv == ("serve", "--name", "my model", "--port", "18123", "$(reboot)", ";", "x")
    assert plan.tcp == TcpAddress("127.0.0.1", 18123)
    assert plan.check == "/health"


def test_a_list_is_taken_word_for_word() -> None:
    settings = CommandSettings(cmd=("serve", "two words ${SOCKET}"), proxy="unix:${SOCKET}", check_endpoint="none")
    plan = planned(settings)
    assert plan.argv == ("serve", "two words /run/w.sock")
    assert plan.unix == UnixAddress(Path("/run/w.sock"))
    assert plan.check is None
    assert not settings.wants_port


def test_own_macros_may_stand_for_several_words_with_macros_in_them() -> None:
    macros = {"base": "serve --port ${PORT}", "stop": "kill"}
    settings = CommandSettings(cmd="${base} --x", cmd_stop="${stop} ${PID}", macros=macros)
    plan = planned(settings)
    assert plan.argv == ("serve", "--port", "18123", "--x")
    assert plan.stop_argv == ("kill", "${PID}"), "the guard alone knows it"
    assert settings.wants_port


def test_the_models_env_knows_the_macros_and_travels_in_no_command_line() -> None:
    spec = BACKEND.launch(CommandSettings(cmd="serve"), order(env={"HOST": "0:${PORT}", "API_KEY": "canary"}))
    assert read_plan(spec.env).env["HOST"] == "0:18123"
    assert not [word for word in spec.argv if "canary" in word]
    assert PLAN_VARIABLE in spec.env
    assert spec.end_s > 0


def test_the_daemons_own_variables_and_secrets_are_not_passed_on() -> None:
    environ = {"PATH": "/bin", "NOTIFY_SOCKET": "/s", "LISTEN_FDS": "1", "AWS_SECRET_ACCESS": "x", "HF_HOME": "/h"}
    assert program_environment(environ, {"HF_TOKEN": "t"}) == {"PATH": "/bin", "HF_HOME": "/h", "HF_TOKEN": "t"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cmd": ""}, "cmd names no program"),
        ({"cmd": "serve 'half"}, "cmd cannot be cut into words: No closing quotation"),
        ({"cmd": "serve ${HOME}"}, r"cmd has \$\{HOME\}, which stands for nothing; there are \$\{PORT\}"),
        ({"cmd": "serve ${PID}"}, r"cmd has \$\{PID\}"),
        ({"cmd": "s", "cmd_stop": "kill ${X}"}, r"cmd_stop has \$\{X\}.*\$\{PID\}"),
        ({"cmd": "s", "macros": {"PORT": "1"}}, "macros: 'PORT' is no name"),
        ({"cmd": "s", "proxy": "https://127.0.0.1:1"}, "proxy: .* there is remote"),
        ({"cmd": "s", "proxy": "http://h:1/v1"}, "must be http://HOST:PORT"),
        ({"cmd": "s", "proxy": "http://h:port"}, "is no address"),
        ({"cmd": "s", "proxy": "unix:w.sock"}, "needs an absolute path"),
        ({"cmd": "s", "proxy": "http://h:${NOPE}"}, r"proxy has \$\{NOPE\}"),
        ({"cmd": "s", "progress": ("(",)}, "progress: '\\(' is no regular expression"),
        ({"cmd": "s", "sleep": SleepSettings(memory={})}, "sleep needs memory"),
        (
            {"cmd": "s", "memory": {"RAM": 1}, "sleep": SleepSettings(memory={}, path="/sleep?tags=x&level=2")},
            "level=2 throws the weights away.*reload_weights",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CommandSettings(**fields)  # type: ignore[arg-type]


def test_a_program_that_is_not_there_is_a_verdict_that_installing_it_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = CommandSettings(cmd="serve-it")
    with pytest.raises(InvalidModelError, match="there is no program 'serve-it' that swapd may run; install it"):
        BACKEND.inspect(settings)
    assert not BACKEND.files(settings)[0].exists()
    (tmp_path / "serve-it").touch(mode=0o755)
    assert BACKEND.inspect(settings).description == "the program serve-it"
    assert BACKEND.files(settings) == (tmp_path / "serve-it",)


def test_what_it_can_do_is_what_its_keys_say() -> None:
    settings = CommandSettings(cmd="sh", chat=False, completions=False, transcriptions=True, memory={"CUDA0": 5})
    found = BACKEND.inspect(settings)
    assert msgspec.to_builtins(found.capabilities) == {
        name: name == "transcriptions" for name in msgspec.to_builtins(found.capabilities)
    }
    assert found.places_itself
    assert found.declared_bytes == {"CUDA0": 5}
    assert found.wants_port


def test_sizes_in_a_block_are_read_with_their_units_and_mistakes_name_their_line() -> None:
    text = "models:\n  m:\n    backend: command\n    cmd: sh\n    memory: {CUDA0: 20GiB, RAM: 512MiB}\n"
    (model,) = parse(text, Path("x.yaml"), installed_backends()).models.values()
    assert model.settings.memory == {"CUDA0": 20 * 2**30, "RAM": 2**29}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"5: models\.m\.memory"):
        parse(text.replace("20GiB", "much"), Path("x.yaml"), installed_backends())


def test_what_it_keeps_while_it_sleeps_is_read_with_its_units_and_mistakes_name_their_line() -> None:
    block = "      memory: {CUDA0: 1.5GiB, RAM: 24GiB}\n      timeout: 2m\n"
    text = f"models:\n  m:\n    backend: command\n    cmd: sh\n    memory: {{CUDA0: 20GiB}}\n    sleep:\n{block}"
    (model,) = parse(text, Path("x.yaml"), installed_backends()).models.values()
    sleep = SleepSettings(memory={"CUDA0": 3 * 2**29, "RAM": 24 * 2**30}, timeout=120.0)
    assert model.settings.sleep == sleep  # type: ignore[attr-defined]
    for right, wrong, message in (
        ("24GiB", "much", r"7: models\.m\.sleep\.memory"),
        ("timeout: 2m", "timeout: 120", r"8: models\.m\.sleep.*120s"),
        ("timeout: 2m", "wakes: /w", r"models\.m\.sleep: has no key wakes"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(text.replace(right, wrong), Path("x.yaml"), installed_backends())


def test_waking_may_take_several_requests_some_with_a_body() -> None:
    steps = """[/wake_up?tags=weights, '/collective_rpc {"method": "reload_weights"}', /wake_up?tags=kv_cache]"""
    block = f"{{memory: {{RAM: 1GiB}}, path: /sleep?level=2, wake: {steps}}}"
    text = f"models:\n  m: {{backend: command, cmd: sh, memory: {{CUDA0: 20GiB}}, sleep: {block}}}\n"
    (model,) = parse(text, Path("x.yaml"), installed_backends()).models.values()
    sleep = CommandBackend().inspect(model.settings).sleep  # type: ignore[arg-type]
    assert sleep is not None
    assert sleep.to_sleep == (Post("/sleep?level=2"),)
    assert sleep.to_wake == (
        Post("/wake_up?tags=weights"),
        Post("/collective_rpc", {"method": "reload_weights"}),
        Post("/wake_up?tags=kv_cache"),
    )
    for wrong in ("[]", "wake_up", "[/a, 3]", "['/a {']", "['/a [1]']"):
        with pytest.raises(ConfigError, match=r"models\.m\.sleep"):
            parse(text.replace(steps, wrong), Path("x.yaml"), installed_backends())


def test_the_documentation_has_every_key_with_its_default() -> None:
    page = Path(__file__).parents[2] / "docs" / "backends.md"
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", page.read_text(), re.MULTILINE))
    shown = {name: yaml.safe_load(default.strip("`")) for name, default in rows.items()}
    defaults: dict[str, object] = {"cmd": "required"} | {
        field.name: msgspec.to_builtins(getattr(CommandSettings(cmd="x"), field.name))
        for field in msgspec.structs.fields(CommandSettings)
        if field.name != "cmd"
    }
    defaults["first_token_timeout"] = "10m"
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()} == shown
