"""What the end of a worker means: a want of memory is told from other ends, and where it was short."""

from __future__ import annotations

import signal

import pytest

from backends.control import Failed, FailureKind
from swapd.core.events import ExitKind
from swapd.core.lifecycle import WorkerState
from swapd.pool.failures import End, judge


def end(
    returncode: int,
    *tail: str,
    phase: WorkerState = WorkerState.LOADING,
    failure: Failed | None = None,
    stopped: bool = False,
) -> End:
    return judge("m", returncode, phase, tail, failure=failure, stopped=stopped)


OUT_OF_MEMORY_LOGS = {
    "cuda weights": (
        ("alloc_buffer: allocating 5120.00 MiB on device 1: cudaMalloc failed: out of memory",),
        "CUDA1",
    ),
    "cuda weights, by the loader": (
        (
            "alloc_buffer: allocating 5120.00 MiB on device 1: cudaMalloc failed: out of memory",
            "llama_model_load: error loading model: unable to allocate CUDA1 buffer",
            "llama_model_load_from_file_impl: failed to load model",
        ),
        "CUDA1",
    ),
    "cuda pool, while it computes": (
        (
            "CUDA error: out of memory",
            "  current device: 2, in function alloc at ggml-cuda.cu:500",
            "  cuMemCreate(&handle, reserve_size, &prop, 0)",
            "ggml-cuda.cu:109: CUDA error",
        ),
        "CUDA2",
    ),
    "compute buffer": (("reserve_n: failed to allocate ROCm0 buffer of size 314572800",), "ROCm0"),
    "vulkan": (
        (
            "ggml_vulkan: Device memory allocation of size 1073741824 failed.",
            "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
            "llama_model_load: error loading model: unable to allocate Vulkan0 buffer",
        ),
        "Vulkan0",
    ),
    "metal": (("allocate_buffer: error: failed to allocate buffer, size =  4096.00 MiB",), None),
    "the KV cache": (
        ("llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",),
        None,
    ),
    "RAM": (("cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9663676416",), "RAM"),
    "C++": (("terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"), "RAM"),
    "Python": (("MemoryError",), "RAM"),
    "mmap": (("llama_model_load: error loading model: mmap failed: Cannot allocate memory",), "RAM"),
}


@pytest.mark.parametrize("case", OUT_OF_MEMORY_LOGS)
@pytest.mark.parametrize("returncode", [1, -signal.SIGABRT, -signal.SIGSEGV])
def test_a_log_that_speaks_of_memory_is_a_want_of_memory(case: str, returncode: int) -> None:
    tail, device = OUT_OF_MEMORY_LOGS[case]
    found = end(returncode, "loading model", *tail)
    assert (found.kind, found.device) == (ExitKind.OUT_OF_MEMORY, device)
    assert tail[0] in found.detail


def test_the_workers_own_word_is_read_like_the_log() -> None:
    failure = Failed(FailureKind.FAILED, "/m.gguf: llama.cpp cannot load it: unable to allocate CUDA0 buffer")
    found = end(1, failure=failure)
    assert (found.kind, found.device) == (ExitKind.OUT_OF_MEMORY, "CUDA0")
    assert (
        found.detail == "model 'm' failed to load: /m.gguf: llama.cpp cannot load it: unable to allocate CUDA0 buffer"
    )


@pytest.mark.parametrize("phase", [WorkerState.LOADING, WorkerState.READY])
def test_a_kill_that_nobody_asked_for_is_the_kernels_for_want_of_ram(phase: WorkerState) -> None:
    found = end(-signal.SIGKILL, "loading", phase=phase)
    assert (found.kind, found.device) == (ExitKind.OUT_OF_MEMORY, "RAM")
    assert "was killed by SIGKILL" in found.detail
    assert "most likely by the kernel for want of RAM" in found.detail


def test_an_end_that_was_asked_for_says_nothing_about_memory() -> None:
    found = end(-signal.SIGKILL, "CUDA error: out of memory", stopped=True)
    assert (found.kind, found.device) == (ExitKind.FAILED, None)


def test_a_crash_on_the_first_batch_is_the_cpus_fault_and_a_later_one_is_not() -> None:
    assert end(-signal.SIGILL).kind is ExitKind.CPU_FAULT
    assert end(-signal.SIGSEGV, phase=WorkerState.READY).kind is ExitKind.FAILED


def test_a_bad_file_stays_a_verdict_whatever_the_log_says() -> None:
    failure = Failed(FailureKind.INVALID_MODEL, "bad magic")
    assert end(1, "failed to allocate", failure=failure) == End(
        ExitKind.INVALID_MODEL, "model 'm' failed to load: bad magic"
    )


@pytest.mark.parametrize(
    "line",
    [
        "warning: failed to mlock 1048576-byte buffer (after previously locking 0 bytes): Cannot allocate memory",
        "ggml_vulkan: Failed to allocate pinned memory (vk::Device::allocateMemory: ErrorOutOfHostMemory)",
        "loading model: out of the ordinary",
    ],
)
def test_what_llama_cpp_can_do_without_is_no_want_of_memory(line: str) -> None:
    assert end(1, line).kind is ExitKind.FAILED


def test_a_worker_that_left_in_peace_had_enough() -> None:
    assert end(0, "a prompt was too long for the KV cache: failed to allocate").kind is ExitKind.FAILED


def test_the_last_output_is_told_and_bounded() -> None:
    found = end(3, "", "first", "x" * 3_000)
    assert found.detail.startswith("the worker of model 'm' exited with status 3 while loading; its last output: ")
    assert len(found.detail) < 1_200
