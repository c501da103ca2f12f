"""Sizes and times as people write them: `22GiB`, `80%`, `90s`.

Pure functions from text to numbers. Every refusal shows the spelling that would be right.
"""

from __future__ import annotations

import re
from decimal import Decimal

from swapd.config.nodes import sexagesimal_seconds
from swapd.config.problems import shown

SIZE_UNITS = {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
TIME_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}

_SIZE_SPELLINGS = {unit.lower(): unit for unit in SIZE_UNITS} | {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB"}
_TIME_SPELLINGS = (
    {unit: unit for unit in TIME_UNITS}
    | dict.fromkeys(("msec", "msecs", "millisecond", "milliseconds"), "ms")
    | dict.fromkeys(("sec", "secs", "second", "seconds"), "s")
    | dict.fromkeys(("min", "mins", "minute", "minutes"), "m")
    | dict.fromkeys(("hr", "hrs", "hour", "hours"), "h")
    | dict.fromkeys(("day", "days"), "d")
)
_QUANTITY = re.compile(r"([-+]?)([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z%]{0,16})", re.ASCII)
_CHAIN = re.compile(r"(?:[0-9]{1,6}(?:ms|[smhd]))+", re.ASCII)
_CHAIN_LINK = re.compile(r"([0-9]+)(ms|[smhd])", re.ASCII)


def _split(text: str, kind: str, example: str) -> tuple[Decimal, str, str]:
    """Number, its own spelling, and unit. Raises `ValueError` for anything that has another form."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not a {kind}; write it like {example}")
    if match[1] == "-":
        raise ValueError(f"{shown(text)} is negative; write a {kind} like {example}")
    return Decimal(match[2]), match[2], match[3]


def parse_size(text: str) -> int:
    """Bytes of `22GiB`, `512MiB`, `1.5GiB`, `8GB` or a whole number of bytes. Raises `ValueError`."""
    number, digits, unit = _split(text, "size", "512MiB or 22GiB")
    if unit == "%":
        raise ValueError(f"{shown(text)} is a share; a size is needed here, such as 512MiB")
    if unit == "":
        if number != number.to_integral_value():
            raise ValueError(f"{shown(text)} has no unit; write {digits}GiB or {digits}MiB")
        return int(number)
    if unit not in SIZE_UNITS or text != digits + unit:
        right = unit if unit in SIZE_UNITS else _SIZE_SPELLINGS.get(unit.lower())
        if right is None:
            units = ", ".join(SIZE_UNITS)
            raise ValueError(f"{shown(text)} has no unit of size; write {digits}GiB or {digits}MiB (units: {units})")
        raise ValueError(f"{shown(text)} is not spelled right; write {digits}{right}")
    return int(number * SIZE_UNITS[unit])


def parse_share(text: str) -> float:
    """0.8 of `80%`. Raises `ValueError`."""
    number, digits, unit = _split(text, "share", "80%")
    if unit != "%" or text != f"{digits}%":
        raise ValueError(f"{shown(text)} is not a share; write it like 80%")
    if not 0 < number <= 100:
        raise ValueError(f"{shown(text)} is out of range; a share is above 0% and at most 100%")
    return float(number / 100)


def parse_time(text: str) -> float:
    """Seconds of `500ms`, `90s`, `10m`, `2h` or `7d`. Raises `ValueError`."""
    seconds = sexagesimal_seconds(text)
    if seconds is not None:
        raise ValueError(f"{shown(text)} is not a time; write {seconds:g}s")
    if _CHAIN.fullmatch(text) and len(_CHAIN_LINK.findall(text)) > 1:
        total = sum(Decimal(count) * TIME_UNITS[unit] for count, unit in _CHAIN_LINK.findall(text))
        raise ValueError(f"{shown(text)} has several units; write {spell_time(float(total))}")
    number, digits, unit = _split(text, "time", "90s or 10m")
    if unit == "":
        raise ValueError(f"{shown(text)} has no unit; write {digits}s (units: {', '.join(TIME_UNITS)})")
    if unit not in TIME_UNITS or text != digits + unit:
        right = unit if unit in TIME_UNITS else _TIME_SPELLINGS.get(unit.lower())
        if right is None:
            raise ValueError(f"{shown(text)} has no unit of time; write {digits}s (units: {', '.join(TIME_UNITS)})")
        raise ValueError(f"{shown(text)} is not spelled right; write {digits}{right}")
    return float(number * TIME_UNITS[unit])


def spell_size(size_bytes: int) -> str:
    """The shortest exact spelling in binary units, as the configuration takes it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return str(size_bytes)


def spell_time(seconds: float) -> str:
    """The shortest exact spelling, as the configuration takes it."""
    if seconds and seconds % 3600 == 0:
        return f"{seconds / 3600:.0f}h"
    if seconds > 60 and seconds % 60 == 0:
        return f"{seconds / 60:.0f}m"
    return f"{seconds * 1000:.0f}ms" if 0 < seconds < 1 else f"{seconds:g}s"
