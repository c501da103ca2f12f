"""Shared by all tests."""

# Hypothesis' pytest plugin imports it when the first test fails, from so deep a stack that Python 3.11's
# compiler gives up on its modules and takes the whole run down with it.
import hypothesis  # noqa: F401
