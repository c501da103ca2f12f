"""How the worker program is started: what the daemon's description of it and its own entry must agree on."""

from __future__ import annotations

import sys

PROGRAM = (sys.executable, "-P", "-m", "backends.llama_cpp")
"""The command line before any argument. No imports from the working directory."""

SPARE_FLAG = "--spare"
"""The only argument, but for the control channel's descriptor, of a worker that is yet to be told its model."""
