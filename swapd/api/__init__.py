"""Dialects as pure translation: bytes to checked requests, snapshots to documents. No I/O."""
