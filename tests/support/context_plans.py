"""A plain way to make a context, for tests to vary with `dataclasses.replace`."""

from __future__ import annotations

from backends.footprint import ContextPlan

PLAN = ContextPlan(
    n_ctx=1000,
    n_seq_max=8,
    n_outputs_max=8,
    n_batch=512,
    n_ubatch=512,
    type_k="f16",
    type_v="f16",
    flash_attn=True,
)
