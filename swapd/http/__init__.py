"""The front door: routes, limits, error mapping, and the relay of bytes to and from workers."""
