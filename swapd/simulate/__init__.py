"""The scheduler against traces, with a virtual clock. Pure: never reads a clock or a file, never starts anything."""
