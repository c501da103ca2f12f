"""What a worker or a foreign program inherits of the daemon's environment. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PASSED_ENV = frozenset(("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "TZ"))
_PASSED_ENV_PREFIXES = (
    "LC_", "XDG_", "OMP_", "OPENBLAS_",
    "CUDA_", "HIP_", "ROCR_", "HSA_", "GGML_VK_", "VK_", "MESA", "ONEAPI_", "ZE_",
)  # fmt: skip
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """What of an environment may be shown to a program: nothing whose name looks like a secret's."""
    return {name: value for name, value in environ.items() if not _SECRET.search(name)}


def worker_environment(daemon: Mapping[str, str], model: Mapping[str, str]) -> dict[str, str]:
    """What a worker inherits: paths, locale and GPU settings of the daemon, then the model's own `env`.

    Nothing that looks like a secret passes, nor llama.cpp's LLAMA_ARG_* defaults. A crash ends without the debugger
    that ggml would attach for a backtrace.
    """
    passed = {
        name: value
        for name, value in without_secrets(daemon).items()
        if name in _PASSED_ENV or name.startswith(_PASSED_ENV_PREFIXES)
    }
    return passed | {"GGML_NO_BACKTRACE": "1"} | dict(model)
