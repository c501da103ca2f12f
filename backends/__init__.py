"""Engines that swapd can run: each says what to run and what it needs; swapd runs it.

Nothing here imports `swapd`, and describing a backend imports neither llama_cpp nor aiohttp.
"""
