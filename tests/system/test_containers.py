"""The container files and the page about installing: what can be known of them without building an image."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from swapd.config.schema import Server

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ROOT / "docs" / "containers"
PAGE = (ROOT / "docs" / "install.md").read_text()
FILES = sorted(CONTAINERS.glob("Containerfile.*"))
KINDS = {"cpu", "cuda", "vulkan"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Each instruction with its text, continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, text) for name, _, text in (line.partition(" ") for line in whole.splitlines())]


def values(file: Path, name: str) -> list[str]:
    return [text for instruction, text in instructions(file) if instruction == name]


def test_there_is_one_for_each_kind_of_machine_and_the_page_names_them() -> None:
    assert {file.suffix[1:] for file in FILES} == KINDS
    named = set(re.findall(r"\((containers/[^)]+)\)", PAGE))
    assert named == {f"containers/{file.name}" for file in FILES}


@each_file
def test_all_that_is_copied_is_there_and_is_all_that_the_package_needs(file: Path) -> None:
    copied = [source for text in values(file, "COPY") if "--from=" not in text for source in text.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert set(copied) == needed


@each_file
def test_the_binding_is_the_one_that_the_project_pins(file: Path) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = [one for one in dependencies if one.startswith("llama-cpp-python")]
    assert re.findall(r'"(llama-cpp-python[^"]*)"', file.read_text()) == [pinned]


@each_file
def test_it_runs_the_daemon_as_nobody_in_particular_where_the_healthcheck_asks_it(file: Path) -> None:
    user = values(file, "USER")[-1]
    assert not {"root", "0"} & set(user.split(":"))
    assert values(file, "ENTRYPOINT") == ['["/opt/swapd/bin/swapd"]']
    port = Server().listen[0].rpartition(":")[2]
    assert values(file, "EXPOSE") == [port]
    (check,) = values(file, "HEALTHCHECK")
    assert f"http://127.0.0.1:{port}/health" in check
    assert values(file, "STOPSIGNAL") == ["SIGTERM"]


@each_file
def test_the_directories_are_private_to_its_user(file: Path) -> None:
    user = values(file, "USER")[-1].partition(":")[0]
    (environment,) = [text for text in values(file, "ENV") if "STATE_DIRECTORY" in text]
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        directory = re.search(rf"{name}=(\S+)", environment)
        assert directory is not None
        assert any(
            re.search(rf"install -d -m 0700 -o {user} -g {user} .*{directory[1]}\b", run) for run in values(file, "RUN")
        )


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@each_file
def test_the_linter_has_nothing_to_say(file: Path) -> None:
    judged = subprocess.run(["hadolint", "--no-color", file], capture_output=True, text=True, check=False)
    assert (judged.returncode, judged.stdout) == (0, "")


def test_every_file_that_the_page_installs_is_there() -> None:
    named = set(re.findall(r"(?<![\w/])((?:systemd|docs)/[\w./-]*\w|config\.example\.yaml)", PAGE))
    assert {"systemd/swapd.service", "systemd/swapd.socket", "config.example.yaml"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_addresses_of_wheels_are_those_that_the_binding_itself_names() -> None:
    told = metadata.metadata("llama-cpp-python").get_payload()
    assert isinstance(told, str)
    addresses = set(re.findall(r"https://abetlen\.github\.io/llama-cpp-python/whl/[\w<>-]+", PAGE))
    assert len(addresses) == 5
    assert [address for address in addresses if address not in told] == []
    assert [version for version in re.findall(r"`(cu\d+)`", PAGE) if f"- `{version}`" not in told] == []
