"""How a worker makes its context, in llama.cpp's terms, and what llama.cpp makes of the figures.

Owns the roundings of src/llama-context.cpp. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_MULTIPLE = 256
"""llama_context pads n_ctx to it."""


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """What is asked of llama.cpp. Types are ggml's names."""

    n_ctx: int
    n_seq_max: int
    n_outputs_max: int
    """Rows of logits of one batch; llama.cpp demands n_outputs_max >= n_seq_max."""
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    flash_attn: bool
    embeddings: bool = False
    pools_mean: bool = False
    """Embeddings are the mean of their tokens' rather than one token's."""
    causal: bool = True
    unified: bool = True
    """One KV cache for all sequences; else each has a part of its own."""
    swa_full: bool = False
    """Windowed layers keep as much as full ones."""
    use_extra_bufts: bool = True
    use_mmap: bool = True
    host_patterns: tuple[str, ...] = ()
    """Regular expressions of the names of tensors that stay in RAM."""
    has_cache: bool = True
    """False for encoders, which llama.cpp gives no KV cache."""

    @property
    def streams(self) -> int:
        """Parts of the KV cache."""
        return 1 if self.unified else self.n_seq_max

    @property
    def cells(self) -> int:
        """Tokens that fit one part of the cache (llama_context, constructor: n_ctx_seq)."""
        return padded_context(self.n_ctx if self.unified else padded_context(self.n_ctx) // self.n_seq_max)

    @property
    def micro_batch(self) -> int:
        """Tokens of the largest micro-batch (cparams.n_ubatch)."""
        n_batch = min(self.n_ctx, self.n_batch) if self.causal else self.n_batch
        return min(n_batch, self.n_ubatch)

    def window_cells(self, window: int) -> int:
        """Tokens of the windowed layers' cache (llama-kv-cache-iswa.cpp, constructor)."""
        if self.swa_full:
            return self.cells
        sequences = self.n_seq_max if self.unified else 1
        return padded_context(min(self.cells, window * sequences + self.micro_batch))


def padded_context(n_ctx: int) -> int:
    """Cells of the cache for `n_ctx` tokens."""
    return -(-n_ctx // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE


def reserved_tokens(plan: ContextPlan) -> int:
    """Tokens of the micro-batch llama.cpp reserves for (llama_context::sched_reserve, graph_reserve)."""
    n_tokens = min(plan.cells * plan.streams, plan.micro_batch)
    return -(-n_tokens // plan.n_seq_max) * plan.n_seq_max


def reserved_outputs(plan: ContextPlan) -> int:
    """Rows of logits or embeddings that it reserves for with them (sched_reserve: n_outputs_pp)."""
    return min(min(plan.cells * plan.streams, plan.micro_batch), plan.n_outputs_max)
