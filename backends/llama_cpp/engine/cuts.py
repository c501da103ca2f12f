"""Where a long text may be cut so that its parts have the tokens of the whole.

llama.cpp looks for special tokens in time that grows with the square of how many a text has (llama-vocab.cpp
`tokenizer_st_partition`): a megabyte of them takes half a minute. What lies between two of them is tokenized by itself,
so a text can be cut right before one. Pure: texts in, texts out.
"""

from __future__ import annotations

import re
from collections.abc import Collection

LONG_CHARS = 16_384
"""Shorter texts are not worth a look."""
TOKENS_PER_PART = 256


class Cuts:
    """Knows the special tokens of one vocabulary by their texts."""

    def __init__(self, special_texts: Collection[str], *, strips: bool = False) -> None:
        """Cuts only before tokens whose first character no special token has further inside: nothing straddles it.

        `strips` says that some take the whitespace beside them away; then there must be none where a part ends.
        """
        inside = {character for text in special_texts for character in text[1:]}
        firsts = sorted((text for text in special_texts if text and text[0] not in inside), key=len, reverse=True)
        place = r"(?<=\S)" if strips else r"(?<=.)"
        any_of = "|".join(map(re.escape, firsts))
        self._before = re.compile(f"{place}(?:{any_of})", re.DOTALL) if firsts else None

    def parts(self, text: str) -> list[str]:
        """The text in order, in parts with at most about `TOKENS_PER_PART` special tokens that can be cut at."""
        if self._before is None or len(text) < LONG_CHARS:
            return [text]
        starts = [match.start() for match in self._before.finditer(text)][TOKENS_PER_PART - 1 :: TOKENS_PER_PART]
        return [text[start:end] for start, end in zip([0, *starts], [*starts, len(text)], strict=True)]
