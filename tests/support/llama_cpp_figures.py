"""Asks llama.cpp itself what models take. Run as a program: a JSON list of jobs on stdin, a JSON list of answers out.

A job is `{"path", "settings", "real"}`; the settings are model keys without `path`. The answer has the buffer sizes
that llama.cpp logs, in MiB as printed (two digits): `model`, `repack`, `kv`, `compute`, `output`; or `error`. Unless
`real`, nothing is allocated (`no_alloc`) and `model` is 0. A process of its own keeps llama.cpp's log callback and
whatever it may do to a bad file away from the tests. `{"ggml_types": N}` asks for the block sizes of types below N.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

BUFFERS = {
    "model": r" (?!CPU_REPACK)\S+ model buffer size = +([\d.]+) MiB",
    "repack": r"CPU_REPACK model buffer size = +([\d.]+) MiB",
    "kv": r"llama_kv_cache: size = +([\d.]+) MiB",
    "compute": r"compute buffer size = +([\d.]+) MiB",
    "output": r"output buffer size = +([\d.]+) MiB",
}


def ask_llama_cpp(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs in one child process and return its answers, in order."""
    result = subprocess.run(
        [sys.executable, __file__], input=json.dumps(jobs), capture_output=True, text=True, check=False, timeout=100
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(result.stdout)
    return answers


def main() -> None:
    import llama_cpp.llama_cpp as llama

    lines: list[str] = []

    @llama.llama_log_callback
    def collect(_level: int, text: bytes, _user: Any) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama.llama_log_set(collect, None)
    llama.llama_backend_init()
    answers: list[dict[str, Any]] = []
    for job in json.load(sys.stdin):
        if "ggml_types" in job:
            answers.append({"types": _ggml_types(job["ggml_types"])})
            continue
        lines.clear()
        error = _run(job)
        log = "".join(lines)
        sizes = {name: sum(map(float, re.findall(pattern, log))) for name, pattern in BUFFERS.items()}
        answers.append({**sizes, "error": error and f"{error}: {log[-500:]}"})
    json.dump(answers, sys.stdout)


def _ggml_types(count: int) -> dict[int, dict[str, int]]:
    from llama_cpp._ggml import libggml

    libggml.ggml_blck_size.restype = ctypes.c_int64
    libggml.ggml_type_size.restype = ctypes.c_size_t
    return {n: {"block": libggml.ggml_blck_size(n), "bytes": libggml.ggml_type_size(n)} for n in range(count)}


def _run(job: dict[str, Any]) -> str | None:
    import llama_cpp.llama_cpp as llama

    from backends.base import Offload
    from backends.llama_cpp.engine.params import ModelFacts, context_params, model_params
    from backends.llama_cpp.settings import LlamaCppSettings

    settings = LlamaCppSettings(path=Path(job["path"]), **job.get("settings", {}))
    params = model_params(settings, Offload(), portable=False)
    if not job.get("real"):
        params.struct.no_alloc = True
        params.struct.load_mode = llama.LLAMA_LOAD_MODE_NONE
    model = llama.llama_model_load_from_file(bytes(settings.path), params.struct)
    if not model:
        return "the model does not load"
    facts = ModelFacts(embeddings=settings.embeddings is True, pooling_type=llama.LLAMA_POOLING_TYPE_MEAN)
    context = llama.llama_init_from_model(model, context_params(settings, facts, 1))
    if context:
        llama.llama_free(context)
    llama.llama_model_free(model)
    return None if context else "the context cannot be made"


if __name__ == "__main__":
    main()
