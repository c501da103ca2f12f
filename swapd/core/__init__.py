"""Decisions only: events in, effects out. Never imports asyncio, a clock, randomness, files or a logger."""
