"""What one batch holds of each sequence, and how it is laid out.

Owns the order in a batch. Must never decide how much a sequence gets, nor decode.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.llama_cpp.engine.batch import Batch
from backends.llama_cpp.engine.media import EmbeddingBatch
from backends.llama_cpp.engine.plan import TILE_TOKENS
from backends.llama_cpp.engine.sequence import Sequence


@dataclass(slots=True)
class Grant:
    """What a batch holds of one sequence: its next `count` pending tokens, and guesses at what follows them."""

    sequence: Sequence
    count: int
    draft: list[int] = field(default_factory=list)
    """Only behind a sequence's last token."""
    row: int = -1
    """Number of the batch's output that belongs to the last pending token; each guess has the next one."""


def apart(grants: list[Grant]) -> list[list[Grant]]:
    """What goes into one batch each, the last first: all that is text together, and every medium alone."""
    text = [grant for grant in grants if grant.sequence.medium is None]
    media = [[grant] for grant in grants if grant.sequence.medium is not None]
    return [*reversed(media), text]


def fill(batch: Batch, grants: list[Grant]) -> Batch | EmbeddingBatch:
    """Write the batch, and into each grant that gets logits where they will be. A medium has a batch of its own."""
    if grants[0].sequence.medium is not None:
        return _medium_batch(grants[0])
    batch.clear()
    single = [grant for grant in grants if grant.sequence.pending == 1 and not grant.draft]
    # Whole tiles before odd ends and single tokens, so that they lie on the tiles of attention.
    chunks = sorted(
        (grant for grant in grants if grant.sequence.pending > 1 or grant.draft),
        key=lambda grant: grant.count % TILE_TOKENS != 0,
    )
    for grant in chunks:
        sequence = grant.sequence
        assert sequence.place is not None
        start = sequence.cached
        end = start + grant.count
        outputs = 1 + len(grant.draft) if end == len(sequence.tokens) else 0
        if outputs:
            grant.row = batch.outputs
        tokens = sequence.tokens[start:end] + grant.draft
        batch.add_chunk(tokens, sequence.position, sequence.place.seq_id, outputs=outputs)
    for index, grant in enumerate(single):
        grant.row = batch.outputs + index
    if single:
        batch.add_single(
            [grant.sequence.tokens[-1] for grant in single],
            [grant.sequence.position for grant in single],
            [grant.sequence.place.seq_id for grant in single if grant.sequence.place is not None],
        )
    return batch


def _medium_batch(grant: Grant) -> EmbeddingBatch:
    sequence, medium = grant.sequence, grant.sequence.medium
    assert medium is not None
    assert sequence.place is not None
    return EmbeddingBatch(medium, sequence.cached - medium.start, grant.count, sequence.place.seq_id)
