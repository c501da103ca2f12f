import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from swapd.observe import logs

EVIL = 'x\r\n{"event":"forged"}\x1b[31m\x9b2J\u2028\u202e\ud800'


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root, raising = logging.getLogger(), logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_lines_are_json_when_stderr_is_no_terminal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        logs.set_up(stream=stream)
        with structlog.contextvars.bound_contextvars(request_id="r1"):
            structlog.get_logger().info("request", model="m", status=200)
    (line,) = lines_of(tmp_path / "log")
    fields = json.loads(line)
    assert fields["event"] == "request"
    assert fields["request_id"] == "r1"
    assert fields["level"] == "info"
    assert fields["timestamp"].endswith("Z")


@pytest.mark.parametrize("json_lines", [True, False])
def test_no_text_can_forge_a_line_or_move_the_cursor(tmp_path: Path, json_lines: bool) -> None:
    with (tmp_path / "log").open("w") as stream:
        logs.set_up(stream=stream, json_lines=json_lines)
        structlog.get_logger().info(EVIL, model=EVIL, many=[EVIL], more={EVIL: EVIL}, thing=Path(EVIL))
        logging.getLogger("library").error("said %s", EVIL)
    lines = lines_of(tmp_path / "log")
    assert len(lines) == 2
    for line in lines:
        assert logs.escape_controls(line) == line
        assert "\\x1b" in line


def test_a_traceback_in_plain_lines_cannot_be_mistaken_for_one_of_them(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        logs.set_up(stream=stream, json_lines=False)
        try:
            raise ValueError("bad\n2026-01-01 [info] forged \x1b[2J")
        except ValueError:
            structlog.get_logger().exception("failed")
    first, *rest = lines_of(tmp_path / "log")
    assert "failed" in first
    assert rest
    assert all(line.startswith("    | ") for line in rest)
    assert "\x1b" not in "".join(rest)


def test_the_standard_library_logs_the_same_way(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        logs.set_up(stream=stream)
        logging.getLogger("aiohttp.server").warning("odd %s", "thing")
        logging.getLogger("aiohttp.server").warning("wrong %d arguments %d", 1)
        logging.getLogger("noisy").info("below the level of libraries")
    first, second = (json.loads(line) for line in lines_of(tmp_path / "log"))
    assert (first["event"], first["logger"], first["level"]) == ("odd thing", "aiohttp.server", "warning")
    assert second["event"] == "wrong %d arguments %d"


def test_a_full_disk_is_survived_and_counted() -> None:
    with Path("/dev/full").open("w") as stream:
        writer = logs.set_up(stream=stream)
        structlog.get_logger().info("lost")
        logging.getLogger("x").error("lost too")
    assert writer.dropped == 2


def test_a_closed_stderr_is_survived() -> None:
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as stream:
        writer = logs.set_up(stream=stream)
        os.close(read_fd)
        structlog.get_logger().info("nobody reads")
    structlog.get_logger().info("nobody could")
    assert writer.dropped == 2


def test_a_reader_that_stopped_reading_never_blocks_the_daemon() -> None:
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as reader, os.fdopen(write_fd, "w") as stream:
        writer = logs.set_up(stream=stream)
        log = structlog.get_logger()
        sent = 0
        while writer.dropped < 3:
            log.info("line", number=sent, pad="x" * 5000)
            sent += 1
            assert sent < 1000
        os.set_blocking(read_fd, False)
        read = io.BytesIO(reader.read())
        log.info("again")
        read.seek(0, io.SEEK_END)
        read.write(reader.read())
        *whole, last = read.getvalue().splitlines()
        assert json.loads(last)["event"] == "again"
        assert [json.loads(line)["number"] for line in whole if line.endswith(b"}")] == list(range(sent - 3))


def test_what_is_below_the_level_is_left_out_whoever_says_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        logs.set_up(stream=stream)
        log, library = structlog.get_logger(), logging.getLogger("library")
        for level in ("error", "warning", "info", "debug"):
            logs.set_level(level)
            for say in (log.debug, log.info, log.warning, log.error, library.info, library.warning, library.error):
                say(level)
    told = [json.loads(line) for line in lines_of(tmp_path / "log")]
    counts = {level: sum(one["event"] == level for one in told) for level in ("error", "warning", "info", "debug")}
    assert counts == {"error": 2, "warning": 4, "info": 5, "debug": 6}


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        logs.set_up(stream=stream)
        structlog.get_logger().info("x", value="y" * 100_000)
    assert len(lines_of(tmp_path / "log")[0]) < logs.MAX_VALUE_CHARS + 200
