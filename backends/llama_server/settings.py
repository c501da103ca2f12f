"""The model keys of a llama-server: those of every GGUF file, and the binary.

Owns the checks that need no file.
"""

from __future__ import annotations

from pathlib import Path

from backends.gguf_settings import GgufSettings, Positive

MAX_TEMPLATE_BYTES = 120_000
"""The kernel takes no word of a command line beyond 128 KiB."""
_LIST_SIGNS = frozenset(',:"')
"""What llama-server reads as the end of a name in a list of files."""


class LlamaServerSettings(GgufSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one model is loaded and how its context is made. Counts are tokens unless said otherwise."""

    n_batch: Positive = 512
    """Between batches, and only there, llama-server streams, hears of clients that left, and says that it works."""
    binary: Path | None = None
    """The llama-server to run; None looks for it on PATH. Relative paths are relative to the configuration file."""

    def __post_init__(self) -> None:
        GgufSettings.__post_init__(self)
        for lora in self.lora:
            if _LIST_SIGNS & set(str(lora.path)):
                raise ValueError(f"lora: llama-server cannot read a path with a comma, colon or quote: {lora.path}")
        for pattern in self.host_patterns:
            if "," in pattern:
                raise ValueError(f"override_tensor {pattern!r}: llama-server takes no comma in a pattern")
        if self.chat_template is not None and len(self.chat_template.encode()) > MAX_TEMPLATE_BYTES:
            raise ValueError(f"chat_template is longer than the {MAX_TEMPLATE_BYTES} bytes that llama-server is given")
