"""Short-lived helper processes: run to their end within bounds, in a thread. They may open GPUs, the daemon may not."""

from __future__ import annotations

import subprocess

from backends.base import LaunchSpec, ProbeError

MAX_ANSWER_BYTES = 1024 * 1024


def run_probe(spec: LaunchSpec, timeout_s: float) -> bytes:
    """What the process has printed. Raises `ProbeError` if it could not be started, took too long or said too much.

    Its exit code means nothing here: whoever reads the answer sees whether it is one.
    """
    try:
        done = subprocess.run(
            spec.argv,
            env=dict(spec.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"the helper process did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ProbeError(f"the helper process could not be started: {error}") from error
    if len(done.stdout) > MAX_ANSWER_BYTES:
        raise ProbeError(f"the helper process printed more than {MAX_ANSWER_BYTES} bytes")
    return done.stdout
