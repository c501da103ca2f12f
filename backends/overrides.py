"""Reads `override_tensor`: which tensors stay in RAM, by patterns of their names. Pure.

A pattern is matched twice, by llama.cpp's std::regex and by ours for the footprint, so only what the two read alike is
taken; a pattern that std::regex cannot read would end the worker.
"""

from __future__ import annotations

import re

MAX_PATTERN = 200
_TARGET = "CPU"
_GRAMMAR = re.compile(
    r"""(?:
      (?: \\[dDwWsSbB] | \\[^0-9A-Za-z_]                        # a class, an escaped sign
        | \[\^?(?: \\[dDwWsS] | \\[^0-9A-Za-z_] | [^\\\[\]] )+\]  # a set
        | \((?:\?[:=!]|(?!\?)) | \) | [^\\\[\](){}*+?] )          # groups, |, ^, $, plain signs
      (?: (?:[*+?]|\{\d{1,3}(?:,\d{0,3})?\})\?? (?![*+?{]) )?   # how often
    )+""",
    re.VERBOSE | re.ASCII,
)


def host_pattern(entry: str) -> str:
    """The pattern of `PATTERN=CPU`. Raises `ValueError` that says what is wrong with it."""
    pattern, sign, target = entry.rpartition("=")
    if not sign or not pattern:
        raise ValueError(f"override_tensor {entry!r} should be PATTERN={_TARGET}, such as ffn_.*_exps={_TARGET}")
    if target != _TARGET:
        raise ValueError(f"override_tensor {entry!r}: tensors can be kept in RAM ({_TARGET}) and nowhere else by name")
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"override_tensor: a pattern has {len(pattern)} characters; {MAX_PATTERN} is the most")
    if not _GRAMMAR.fullmatch(pattern):
        raise ValueError(f"override_tensor {entry!r}: the pattern has a part that not every reader knows")
    try:
        re.compile(pattern, re.ASCII)
    except re.error as error:
        raise ValueError(f"override_tensor {entry!r}: {error}") from None
    return pattern
