"""The guard: runs a foreign program as a worker, speaks the control channel for it, and leaves nothing of it behind."""
