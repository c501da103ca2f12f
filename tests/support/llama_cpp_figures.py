"""Asks llama.cpp itself what models take. Run as a program: a JSON list of jobs on stdin, a JSON list of answers out.

A job is `{"path", "settings", "real"}`; the settings are model keys without `path`. The answer has the buffer sizes
that llama.cpp logs, in MiB as printed (two digits): `model`, `repack`, `kv`, `states`, `compute`, `output`; `bytes`
with its own exact account of `model`, `context` and `compute`; or `error`. Unless `real`, nothing is allocated
(`no_alloc`) and the logged `model` is 0. A process of its own keeps llama.cpp's log callback and whatever it may do
to a bad file away from the tests. Jobs on the same file should stand together: it is loaded once for them.
`{"ggml_types": N}` asks for the block sizes of types below N.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

BUFFERS = {
    "model": r" (?!CPU_REPACK)\S+ model buffer size = +([\d.]+) MiB",
    "repack": r"CPU_REPACK model buffer size = +([\d.]+) MiB",
    "kv": r"llama_kv_cache: size = +([\d.]+) MiB",
    "states": r"llama_memory_recurrent: size = +([\d.]+) MiB",
    "compute": r"compute buffer size = +([\d.]+) MiB",
    "output": r"output buffer size = +([\d.]+) MiB",
}
OF_THE_MODEL = ("use_extra_bufts", "use_mmap")
"""Keys that a load depends on, of those that tests set."""


def ask_llama_cpp(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs in one child process and return its answers, in order."""
    result = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(result.stdout)
    return answers


class Figures:
    """One process's view of llama.cpp: the log so far, and the model loaded last."""

    def __init__(self) -> None:
        import llama_cpp.llama_cpp as llama

        self.llama = llama
        self.lines: list[str] = []
        self._callback = llama.llama_log_callback(
            lambda _, text, __: self.lines.append(text.decode("utf-8", "replace"))
        )
        llama.llama_log_set(self._callback, None)
        llama.llama_backend_init()
        self._loaded: tuple[object, Any, str] = (None, None, "")

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        from backends.llama_cpp.breakdown import read_breakdown
        from backends.llama_cpp.engine.model import facts_of
        from backends.llama_cpp.engine.params import context_params
        from backends.llama_cpp.settings import LlamaCppSettings

        settings = LlamaCppSettings(path=Path(job["path"]), **job.get("settings", {}))
        model, loading = self._model(job, settings)
        if not model:
            return {"error": f"the model does not load: {loading[-500:]}"}
        self.lines.clear()
        ctx = self.llama.llama_init_from_model(model, context_params(settings, facts_of(model, settings), 1))
        log = loading + "".join(self.lines)
        if not ctx:
            return {"error": f"the context cannot be made: {log[-500:]}"}
        uses = read_breakdown(ctx)
        assert uses is not None, "this build's memory breakdown cannot be read"
        self.llama.llama_free(ctx)
        sizes: dict[str, Any] = {n: sum(map(float, re.findall(pattern, log))) for n, pattern in BUFFERS.items()}
        exact = {part: sum(getattr(use, f"{part}_bytes") for use in uses) for part in ("model", "context", "compute")}
        return {**sizes, "bytes": exact, "error": None}

    def _model(self, job: dict[str, Any], settings: Any) -> tuple[Any, str]:
        """The model, and what was logged while it was loaded."""
        from backends.base import Offload
        from backends.llama_cpp.engine.params import model_params

        wanted = (job["path"], bool(job.get("real")), [getattr(settings, key) for key in OF_THE_MODEL])
        if self._loaded[0] != wanted:
            if self._loaded[1]:
                self.llama.llama_model_free(self._loaded[1])
            params = model_params(settings, Offload(), portable=False)
            if not job.get("real"):
                params.struct.no_alloc = True
                params.struct.load_mode = self.llama.LLAMA_LOAD_MODE_NONE
            self.lines.clear()
            model = self.llama.llama_model_load_from_file(bytes(settings.path), params.struct)
            self._loaded = (wanted, model, "".join(self.lines))
        return self._loaded[1:]


def main() -> None:
    figures = Figures()
    answers = [
        {"types": _ggml_types(job["ggml_types"])} if "ggml_types" in job else figures.answer(job)
        for job in json.load(sys.stdin)
    ]
    json.dump(answers, sys.stdout)


def _ggml_types(count: int) -> dict[int, dict[str, int]]:
    from llama_cpp._ggml import libggml

    libggml.ggml_blck_size.restype = ctypes.c_int64
    libggml.ggml_type_size.restype = ctypes.c_size_t
    return {n: {"block": libggml.ggml_blck_size(n), "bytes": libggml.ggml_type_size(n)} for n in range(count)}


if __name__ == "__main__":
    main()
