"""How connections to servers elsewhere are made safe: one TLS context for each way to trust, kept.

Owns the contexts. A file of certificates that has changed makes a new one.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from backends.address import Tls

KEPT_CONTEXTS = 32
_kept: dict[tuple[Tls, int], ssl.SSLContext] = {}


async def client_context(tls: Tls) -> ssl.SSLContext:
    """The context for connections as `tls` says. Raises `OSError` for a file that is not there or has no certificate.

    Making one takes tens of milliseconds, hence the thread.
    """
    key = (tls, _changed_ns(tls.ca_file))
    if key not in _kept:
        made = await asyncio.to_thread(_make, tls)
        while len(_kept) >= KEPT_CONTEXTS:
            del _kept[next(iter(_kept))]
        _kept[key] = made
    return _kept[key]


def _changed_ns(file: Path | None) -> int:
    return 0 if file is None else file.stat().st_mtime_ns


def _make(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
