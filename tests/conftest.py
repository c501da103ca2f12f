"""Shared by all tests."""

import signal

# Hypothesis' pytest plugin imports it when the first test fails, from so deep a stack that Python 3.11's
# compiler gives up on its modules and takes the whole run down with it.
import hypothesis  # noqa: F401

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
