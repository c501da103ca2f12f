"""`python -m support.edited_daemon CONFIG`: the scripted daemon, whose file is edited just after it was read.

The edit is a file beside it, `CONFIG.edited`, that is renamed over it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from support.scripted_backend import ScriptedBackend

from swapd import daemon
from swapd.config.load import load


def main() -> int:
    backends = {ScriptedBackend.name: ScriptedBackend()}
    path = Path(sys.argv[1])
    config = load(path, backends)
    path.with_name(f"{path.name}.edited").rename(path)
    return daemon.run(config, backends)


if __name__ == "__main__":
    raise SystemExit(main())
