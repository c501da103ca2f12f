"""What goes into the next batch: arithmetic on counts, nothing else.

Owns the rule "decode first, then prompts in fair shares". Must never touch a sequence, a clock or llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

LONG_BATCH_S = 2.0
"""With prompts alone, a batch should end within this time: cancels and the progress count wait for it."""
MIN_CHUNK_TOKENS = 16
"""Smaller prompt chunks waste the hardware without helping anyone's latency."""
TILE_TOKENS = 64
"""llama.cpp's attention works on tiles of this many tokens (ggml-cpu/common.h GGML_FA_TILE_Q) and pads the last."""
RATE_SMOOTHING = 0.25
"""Weight of the newest measurement in the running prompt speed."""


def share_batch(pending: Sequence[int], turns: Sequence[int], n_batch: int, prompt_budget: int) -> list[int]:
    """Tokens each sequence gets in the next batch. `pending` counts tokens not yet in the cache, oldest first.

    Sequences with one token pending get it first, at most `n_batch` of them. The others share what is left, and no
    more than `prompt_budget`, tile by tile and in the order of `turns`, smallest first: whoever was read last has the
    highest. Parts of whole tiles keep each tile of attention within one prompt, where the others' cells are skipped.
    """
    counts = [0] * len(pending)
    room = n_batch
    prompts: list[int] = []
    for index, count in enumerate(pending):
        if count > 1:
            prompts.append(index)
        elif count == 1 and room > 0:
            counts[index] = 1
            room -= 1
    room = min(room, prompt_budget)
    prompts.sort(key=lambda index: turns[index])
    while room and prompts:
        for index in prompts:
            count = min(TILE_TOKENS, pending[index] - counts[index], room)
            counts[index] += count
            room -= count
        prompts = [index for index in prompts if counts[index] < pending[index]]
    return counts


def prompt_budget(tokens_per_s: float | None, stall_s: float, *, decoding: int, n_batch: int, n_ubatch: int) -> int:
    """Prompt tokens the next batch may carry, from the measured speed (None before the first measurement).

    `stall_s` is how long the `decoding` streams may be kept waiting, to the nearest whole tile. With none, it is
    `LONG_BATCH_S` in whole micro-batches, so that a prompt that runs alone is always cut in the same places and gives
    the same logits.
    """
    if decoding:
        total = n_ubatch if tokens_per_s is None else min(n_ubatch, int(tokens_per_s * stall_s))
        if total > TILE_TOKENS // 2:
            # A batch of one tile reads a prompt at two thirds of the speed of four, and one of two at nine tenths.
            total = min(n_ubatch, (total + TILE_TOKENS // 2) // TILE_TOKENS * TILE_TOKENS)
        return max(min(MIN_CHUNK_TOKENS, n_ubatch), total - decoding)
    if tokens_per_s is None:
        return min(n_batch, n_ubatch)
    micro_batches = max(1, int(tokens_per_s * LONG_BATCH_S) // n_ubatch)
    return min(n_batch, micro_batches * n_ubatch)


def smoothed_rate(previous: float | None, tokens: int, seconds: float) -> float | None:
    """The running speed of batches with prompts, in tokens per second; tiny batches say nothing about it."""
    if tokens < MIN_CHUNK_TOKENS or seconds <= 0:
        return previous
    rate = tokens / seconds
    return rate if previous is None else previous + RATE_SMOOTHING * (rate - previous)


def pack_inputs(lengths: Sequence[int], n_tokens_max: int, n_inputs_max: int) -> int:
    """How many of these inputs, from the first, fit one batch together. At least one if there is any."""
    total = 0
    for position, length in enumerate(lengths[:n_inputs_max]):
        total += length
        if total > n_tokens_max:
            return max(1, position)
    return min(len(lengths), n_inputs_max)
