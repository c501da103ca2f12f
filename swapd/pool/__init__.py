"""The shell around the core: one inbox, one loop, worker processes, and `async with pool.lease(request)`."""
