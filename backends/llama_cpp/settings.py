"""The model keys of the embedded worker: those of every GGUF file, and its own.

Owns the checks that need no file. The daemon reads them from YAML; the worker receives them as one JSON
document on its command line. Must never import llama_cpp.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from backends.base import Duration
from backends.gguf_settings import GgufSettings

MAX_DRAFT_TOKENS = 15
"""Guessed tokens in one batch, of all sequences together: each needs a row of logits in the context's output buffer."""


class LlamaCppSettings(GgufSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one model is loaded and how its context is made. Counts are tokens unless said otherwise."""

    prefix_slots: Annotated[int, msgspec.Meta(ge=0, le=128)] | Literal["auto"] = "auto"
    """Finished sequences whose cache is kept for the next prompt with the same beginning."""
    prefill_stall: Duration = 1.5
    """While streams run, prompts are cut so that no batch keeps them waiting for longer than about this."""
    spec_type: Literal["auto", "none"] = "auto"
    """Auto guesses tokens that stood in the text before and decodes them along while that is measured to win time."""

    def __post_init__(self) -> None:
        GgufSettings.__post_init__(self)
        if self.n_parallel + self.retired_slots > 256:
            raise ValueError("n_parallel + prefix_slots must not exceed 256, llama.cpp's limit of sequences")

    @property
    def retired_slots(self) -> int:
        """`prefix_slots` with auto resolved: as many as run at once, at least four."""
        return max(4, self.n_parallel) if self.prefix_slots == "auto" else self.prefix_slots

    @property
    def draft_rows(self) -> int:
        """Rows of logits for guessed tokens."""
        return MAX_DRAFT_TOKENS if self.spec_type == "auto" else 0

    @property
    def n_seq_max(self) -> int:
        """Sequences the context is made for."""
        return self.n_parallel + self.retired_slots
