"""swapd: many GGUF models, one box, no guessing at memory."""

from importlib.metadata import version

__version__ = version("swapd")
