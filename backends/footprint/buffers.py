"""What a worker takes beside weights, cache and compute buffer: output rows, the process, the driver. Pure."""

from __future__ import annotations

from backends.footprint.layers import Dimensions
from backends.footprint.plan import ContextPlan

PROCESS_BASE_BYTES = 64 * 1024 * 1024
"""A worker with its libraries, before the vocabulary. Measured as proportional set size (smaps), Linux x86-64, CPU
build: 56 MiB for Python 3.11 with llama_cpp, aiohttp, numpy, msgspec and jinja2 imported, 4 MiB more for a loaded
512-token model and its context without their buffers, 2 MiB for the first decode and its threads; the rest is room
for requests."""
PROCESS_BYTES_PER_TOKEN = 400
"""llama.cpp's vocabulary and a table of the tokens' text: 300 and 70 bytes per token measured with SmolLM2's 49,152."""
GPU_CONTEXT_BYTES = 512 * 1024 * 1024
"""What a driver takes on a GPU for a process: CUDA's context and kernels, 300 to 600 MiB by card and driver as reported
in llama.cpp's issues 20582 and 23120; nothing here could measure it. What a device shows in use corrects it."""
PIPELINE_COPIES = 4
"""Of its inputs the scheduler keeps so many on every device when several GPUs work in turn (GGML_SCHED_MAX_COPIES)."""


def output_buffer(dims: Dimensions, plan: ContextPlan) -> int:
    """Bytes of the host buffer for logits, and for embeddings when asked for (llama-context.cpp output_reserve)."""
    rows = max(plan.n_outputs_max, plan.n_seq_max)
    return 4 * rows * (dims.n_vocab + ((dims.n_embd_out or dims.n_embd) if plan.embeddings else 0))


def process_bytes(n_vocab: int) -> int:
    """RAM of a worker process beside weights, cache and buffers; a measured figure, see the constants."""
    return PROCESS_BASE_BYTES + PROCESS_BYTES_PER_TOKEN * n_vocab
