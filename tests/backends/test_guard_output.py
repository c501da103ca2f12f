"""A program's output, cut into lines, and what they tell."""

from __future__ import annotations

import socket
import time

import pytest

from backends.address import TcpAddress
from backends.guard.output import MAX_LINE_BYTES, RAM, Buffers, Output, Progress
from backends.guard.probe import PROBE_S, Probe
from backends.llama_server.backend import BUFFERS


def test_a_line_is_passed_on_when_it_is_whole() -> None:
    output = Output()
    assert output.feed(b"one\ntw") == (b"one\n", [b"one"])
    assert output.feed(b"o\r\n") == (b"two\n", [b"two"])
    assert output.rest() == b""


def test_of_a_bar_that_is_drawn_over_only_the_last_form_is_passed_on() -> None:
    output = Output()
    assert output.feed(b"\r10%\r20%") == (b"", [b"20%"])
    shown, seen = output.feed(b"\r99%\r100%\nnext\n")
    assert shown == b"100%\nnext\n"
    assert {b"99%", b"100%", b"next"} <= set(seen)


def test_the_last_line_needs_no_end() -> None:
    output = Output()
    output.feed(b"a\rb")
    assert output.rest() == b"b\n"


@pytest.mark.parametrize("end", [b"", b"\r"])
def test_what_never_ends_a_line_takes_no_more_memory_than_one(end: bytes) -> None:
    output = Output()
    passed = 0
    for _ in range(100):
        passed += len(output.feed(b"x" * 4096 + end)[0])
        assert len(output._partial) <= MAX_LINE_BYTES + 4097
    assert passed > 0 or end


def test_progress_is_read_as_a_percentage_or_as_a_part_of_a_whole() -> None:
    progress = Progress([r"(\d+)% done", r"step (\d+)/(\d+)", r"alive"])
    assert progress.find([b"25% done"]) == (True, 0.25)
    assert progress.find([b"25% done", b"step 3/4", b"other"]) == (True, 0.75)
    assert progress.find([b"alive"]) == (True, None)
    assert progress.find([b"step 1/0"]) == (True, None)
    assert progress.find([b"nothing \xff"]) == (False, None)
    assert progress.find([b"250% done"]) == (True, 1.0)


def test_a_question_that_is_not_answered_has_a_deadline_and_never_blocks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        probe = Probe(TcpAddress("127.0.0.1", silent.getsockname()[1]), "/health", now_s=100.0)
        began_s = time.monotonic()
        assert probe.step() is None
        assert probe.step() is None
        assert time.monotonic() - began_s < 0.1
        assert probe.deadline_s == 100.0 + PROBE_S
        probe.close()


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.0 200\r\n", True),
        (b"HTTP/1.1 503 Loading\r\n", False),
        (b"HTTP/1.1 2000 OK\r\n", False),
        (b"SSH-2.0-OpenSSH 200\r\n", False),
        (b"HTTP/1.1 200 OK", False),
        (b"", False),
    ],
)
def test_only_a_status_of_200_is_ready(answer: bytes, ready: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = Probe(TcpAddress("127.0.0.1", server.getsockname()[1]), "/health", now_s=0.0)
        assert probe.step() is None
        connection, _ = server.accept()
        assert connection.recv(4096).startswith(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:")
        connection.sendall(answer)
        connection.close()
        probe.socket.setblocking(True)
        found = None
        while found is None:
            found = probe.step()
        assert found is ready
        probe.close()


SAID = b"""\
0.00.780.718 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
load_tensors:      Vulkan0 model buffer size =   300.50 MiB
0.00.782.880 I llama_context:        CPU  output buffer size =     0.50 MiB
0.00.783.075 I llama_kv_cache:        CPU KV buffer size =    45.00 MiB
llama_kv_cache:    Vulkan0 KV buffer size =    20.00 MiB
0.00.846.977 I llama_kv_cache: size =   45.00 MiB (  1024 cells,  30 layers,  2/2 seqs), K (f16):   22.50 MiB, V (f16)
0.00.868.544 I sched_reserve:    Vulkan0 compute buffer size =    14.50 MiB
0.00.868.544 I sched_reserve: Vulkan_Host compute buffer size =     4.40 MiB
0.00.868.544 I prompt: CUDA1 model buffer size = huge MiB
"""
"""As two llama-servers print them, with prefixes and without."""


def test_what_has_been_allocated_is_added_up_by_device_and_the_rest_is_host_memory() -> None:
    buffers = Buffers(BUFFERS)
    buffers.read(SAID.splitlines())
    mib = 1024 * 1024
    assert buffers.device_bytes() == {
        "Vulkan0": 335 * mib,
        RAM: round(92.1 * mib) + round(0.5 * mib) + 45 * mib + round(4.4 * mib),
    }


def test_a_buffer_that_is_cut_over_several_devices_tells_nothing_of_any() -> None:
    buffers = Buffers(BUFFERS)
    buffers.read([*SAID.splitlines(), b"load_tensors: CUDA_Split model buffer size = 10.00 MiB"])
    assert buffers.device_bytes() == {}
    assert Buffers("").device_bytes() == {}
