"""ps, load, unload, pause, resume and logs against a scripted daemon on a real socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from support.admin_script import Script, device_document, model_document, scripted_admin, status_document

from swapd.cli import main

Captured = pytest.CaptureFixture[str]


def test_ps_shows_each_model_and_each_memory(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    assert main(["ps", "--url", daemon.url]) == 0
    out = capsys.readouterr().out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("qwen3-8b")]
    assert row == ["qwen3-8b", "ready", "1", "0", "RAM", "310", "MiB", "3", "1.9", "s", "4.2", "s", "ago"]
    assert "RAM: 310 MiB of 20.0 GiB reserved, 15.0 GiB free" in out
    assert "org/tiny: evicted 71.0 s ago: to make room for qwen3-8b" in out
    assert "\x1b" not in out


def test_ps_shows_how_a_loaded_models_estimate_came_about(daemon: Script, capsys: Captured) -> None:
    mib = 1024 * 1024
    footprint = {
        "estimated_bytes": {"CUDA0": 5120 * mib, "RAM": 310 * mib},
        "formula_bytes": {"CUDA0": 5184 * mib, "RAM": 310 * mib},
        "probed_bytes": {"CUDA0": 4670 * mib},
        "measured_bytes": {"CUDA0": 5090 * mib, "RAM": 290 * mib},
        "correction_bytes": {"CUDA0": -64 * mib},
    }
    loaded, other = status_document()["models"]
    models = [loaded | {"footprint": footprint}, other | {"footprint": footprint}]
    daemon.answer("GET /swapd/v1/status", status_document(models=models))
    assert main(["ps", "--url", daemon.url]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory of ")]
    assert line == (
        "memory of qwen3-8b: CUDA0 5,120 MiB estimated "
        "(formula 5,184 MiB, correction -64 MiB, engine 4,670 MiB, measured 5,090 MiB); "
        "RAM 310 MiB estimated (formula 310 MiB, measured 290 MiB)"
    )


def test_ps_json_is_the_status_with_bytes_and_seconds(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    assert main(["ps", "--url", daemon.url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"][0]["workers"][0]["reserved_bytes"] == {"RAM": 325058560}
    assert document["models"][0]["load_s"] == 1.9


def test_ps_says_what_keeps_a_model_from_being_served(daemon: Script, capsys: Captured) -> None:
    broken = model_document("bad", error="its file is truncated", retry_in_s=8.0)
    config = {"path": "c.yaml", "loaded_ago_s": 1.0, "error": "c.yaml:3: models: is wrong"}
    daemon.answer("GET /swapd/v1/status", status_document(models=[broken], config=config))
    assert main(["ps", "--url", daemon.url]) == 0
    out = capsys.readouterr().out
    assert "bad: its file is truncated (next try in 8.0 s)" in out
    assert "the configuration in force is an older one: c.yaml:3: models: is wrong" in out


def test_a_name_cannot_write_escape_sequences_to_the_terminal(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document(models=[model_document("a\x1b[31mb", error="c\x07d")]))
    assert main(["ps", "--url", daemon.url]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "a\\x1b[31mb" in out


def test_load_percent_encodes_the_name_and_says_how_long_it_took(daemon: Script, capsys: Captured) -> None:
    loaded = model_document("org/my model?", state="ready", load_s=2.5)
    daemon.answer("POST /swapd/v1/models/org%2Fmy%20model%3F/load", loaded)
    assert main(["load", "org/my model?", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "org/my model? is ready, loaded in 2.5 s\n"


def test_pin_and_unpin_say_how_long_that_lasts(daemon: Script, capsys: Captured) -> None:
    daemon.answer("POST /swapd/v1/models/tiny/pin", model_document("tiny"))
    daemon.answer("POST /swapd/v1/models/tiny/unpin", model_document("tiny"))
    assert main(["pin", "tiny", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "tiny is pinned until the daemon ends, or `swapd unpin tiny`\n"
    assert main(["unpin", "tiny", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "tiny is not pinned\n"


def test_unload_all_names_each_model_and_says_when_there_was_none(daemon: Script, capsys: Captured) -> None:
    daemon.answer("POST /swapd/v1/unload", {"models": [model_document("tiny"), model_document("big")]})
    assert main(["unload", "--all", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "tiny is unloaded\nbig is unloaded\n"
    daemon.answer("POST /swapd/v1/unload", {"models": []})
    assert main(["unload", "--all", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "nothing is loaded\n"
    for wrong in ([], ["tiny", "--all"]):
        with pytest.raises(SystemExit, match="2"):
            main(["unload", *wrong, "--url", daemon.url])


def test_unload_says_what_the_model_is_now(daemon: Script, capsys: Captured) -> None:
    daemon.answer("POST /swapd/v1/models/tiny/unload", model_document("tiny"))
    assert main(["unload", "tiny", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "tiny is unloaded\n"


def test_pause_says_that_the_gpu_is_empty_and_how_to_give_it_back(daemon: Script, capsys: Captured) -> None:
    daemon.answer("POST /swapd/v1/devices/CUDA0/pause", device_document("CUDA0", paused=True))
    assert main(["pause", "CUDA0", "--url", daemon.url]) == 0
    said = "CUDA0 is yours: nothing of swapd's is on it. `swapd resume CUDA0` gives it back\n"
    assert capsys.readouterr().out == said


def test_a_pause_that_somebody_took_back_has_failed(daemon: Script, capsys: Captured) -> None:
    daemon.answer("POST /swapd/v1/devices/CUDA0/pause", device_document("CUDA0"))
    assert main(["pause", "CUDA0", "--url", daemon.url]) == 1
    assert "taken back" in capsys.readouterr().err


def test_resume_says_whose_the_gpu_is_now(daemon: Script, capsys: Captured) -> None:
    daemon.answer("POST /swapd/v1/devices/CUDA0/resume", device_document("CUDA0"))
    assert main(["resume", "CUDA0", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "CUDA0 is swapd's again\n"


def test_ps_says_who_else_is_on_a_device_and_what_a_model_waits_for(daemon: Script, capsys: Captured) -> None:
    gpu = device_document("CUDA0", others_bytes=3 << 30, paused=True)
    shared = device_document("Vulkan0", shares="RAM")
    waiting = model_document("tiny", waiting=1, waits="waits for CUDA0, handed over to others until it is resumed")
    daemon.answer("GET /swapd/v1/status", status_document(devices=[gpu, shared], models=[waiting]))
    assert main(["ps", "--url", daemon.url]) == 0
    out = capsys.readouterr().out
    held = "3,072 MiB held by other programs, handed over until `swapd resume CUDA0`"
    assert f"CUDA0: 0 MiB of 20.0 GiB reserved, 24.0 GiB free, {held}" in out
    assert "Vulkan0: 0 MiB of 20.0 GiB reserved, 24.0 GiB free, part of RAM" in out
    assert "tiny: waits for CUDA0, handed over to others until it is resumed" in out


def test_ps_lists_the_requests_that_wait(daemon: Script, capsys: Captured) -> None:
    waiting = {"id": "r7", "model": "tiny", "client": "user-ann", "priority": 0, "waited_s": 3.0}
    running = {**waiting, "id": "r1", "state": "running", "running_s": 1.0}
    waiting |= {"state": "waiting", "position": 2, "expected_wait_s": 4.5}
    daemon.answer("GET /swapd/v1/status", status_document(in_flight=[waiting, running]))
    assert main(["ps", "--url", daemon.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("r")]
    assert row == ["r7", "tiny", "user-ann", "2", "3.0", "s", "4.5", "s"]


def test_cancel_ends_one_request(daemon: Script, capsys: Captured) -> None:
    daemon.answer("POST /swapd/v1/requests/r%2F7/cancel", {"id": "r/7", "state": "cancelled"})
    assert main(["cancel", "r/7", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "r/7 is cancelled\n"


def test_a_refusal_is_the_daemons_own_sentence(daemon: Script, capsys: Captured) -> None:
    daemon.refuse("POST /swapd/v1/models/tinny/load", 404, "there is no model 'tinny'; did you mean 'tiny'?")
    assert main(["load", "tinny", "--url", daemon.url]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "swapd: there is no model 'tinny'; did you mean 'tiny'?\n"


@pytest.mark.parametrize("body", ["", "<html>no", "[1]", '{"error": "x"}'])
def test_a_refusal_without_an_envelope_still_is_one_line(daemon: Script, capsys: Captured, body: str) -> None:
    daemon.answer("POST /swapd/v1/models/tiny/load", body, status=502)
    assert main(["load", "tiny", "--url", daemon.url]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("swapd: status 502")
    assert captured.err.count("\n") == 1


def test_something_that_is_no_swapd_is_said_to_be_none(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", {"hello": "world"})
    assert main(["ps", "--url", daemon.url]) == 1
    assert "is no swapd of this version" in capsys.readouterr().err


def test_logs_of_one_model_are_its_lines_as_they_are(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/logs/org%2Ftiny", "first\nsecond\x1b[2J\n")
    assert main(["logs", "org/tiny", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "first\nsecond\\x1b[2J\n"


def test_logs_of_all_models_carry_their_names(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    daemon.answer("GET /swapd/v1/logs/qwen3-8b", "loading\nready\n")
    daemon.answer("GET /swapd/v1/logs/org%2Ftiny", "")
    assert main(["logs", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "qwen3-8b | loading\nqwen3-8b | ready\n"


def test_followed_logs_come_from_the_event_stream_until_it_ends(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/logs/tiny?follow=1", b": still here\n\ndata: one\n\ndata:   two\n\n")
    assert main(["logs", "tiny", "-f", "--url", daemon.url]) == 0
    assert capsys.readouterr().out == "one\n  two\n"


def test_following_all_models_outlives_the_failure_of_one(daemon: Script, capsys: Captured) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    daemon.answer("GET /swapd/v1/logs/qwen3-8b?follow=1", b"data: ready\n\n")
    daemon.refuse("GET /swapd/v1/logs/org%2Ftiny?follow=1", 404, "it is gone")
    assert main(["logs", "-f", "--url", daemon.url]) == 1
    captured = capsys.readouterr()
    assert captured.out == "qwen3-8b | ready\n"
    assert captured.err == "swapd: org/tiny: it is gone\n"


def test_a_unix_socket_is_reached(tmp_path: Path, capsys: Captured) -> None:
    with scripted_admin(tmp_path / "http") as script:
        script.answer("POST /swapd/v1/models/tiny/unload", model_document("tiny"))
        assert main(["unload", "tiny", "--url", script.url]) == 0
    assert capsys.readouterr().out == "tiny is unloaded\n"


def test_no_daemon_is_one_clear_line(capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["ps", "--url", f"127.0.0.1:{port}"]) == 1
    assert capsys.readouterr().err == f"swapd: no daemon answers at http://127.0.0.1:{port}: Connection refused\n"


def test_no_daemon_at_a_unix_socket_is_one_clear_line(tmp_path: Path, capsys: Captured) -> None:
    assert main(["ps", "--url", f"unix:{tmp_path}/http"]) == 1
    assert capsys.readouterr().err == f"swapd: no daemon answers at unix:{tmp_path}/http: No such file or directory\n"


def test_the_environment_names_the_daemon_and_the_option_overrides_it(
    daemon: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    monkeypatch.setenv("SWAPD_URL", daemon.url)
    assert main(["ps"]) == 0
    monkeypatch.setenv("SWAPD_URL", "http://127.0.0.1:1")
    assert main(["ps", "--url", daemon.url]) == 0
    assert len(daemon.requests) == 2


def test_the_configurations_listen_names_the_daemon(daemon: Script, tmp_path: Path) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    config = tmp_path / "my.yaml"
    port = daemon.url.rpartition(":")[2]
    config.write_text(f"server: {{listen: '0.0.0.0:{port}'}}\nmodels: {{}}\n")
    assert main(["ps", "--config", str(config)]) == 0


def test_a_broken_configuration_does_not_keep_one_from_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text("models: {}\nserve: {}\n")
    monkeypatch.setenv("SWAPD_CONFIG", str(config))
    monkeypatch.setattr("swapd.cli.remote.Server", lambda: type("Nowhere", (), {"listen": ("127.0.0.1:1",)}))
    assert main(["ps"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith(f"swapd: {config}:2: serve: ")
    assert err[0].endswith("looking for the daemon at 127.0.0.1:1")
    assert err[1] == "swapd: no daemon answers at http://127.0.0.1:1: Connection refused"


@pytest.mark.parametrize(("columns", "shown", "hidden"), [("40", "STATE", "MEMORY"), ("65", "MEMORY", "LAST USED")])
def test_a_narrow_terminal_loses_columns_and_no_line_is_longer(
    daemon: Script, capsys: Captured, monkeypatch: pytest.MonkeyPatch, columns: str, shown: str, hidden: str
) -> None:
    daemon.answer("GET /swapd/v1/status", status_document())
    monkeypatch.setattr("swapd.cli.output.PIPE_WIDTH", int(columns))
    assert main(["ps", "--url", daemon.url]) == 0
    table = capsys.readouterr().out.partition("RAM: ")[0].splitlines()
    assert shown in table[0]
    assert hidden not in table[0]
    assert max(len(line) for line in table) <= int(columns)
