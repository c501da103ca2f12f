"""`python -m swapd` is the command `swapd`."""

from swapd.cli import main

raise SystemExit(main())
