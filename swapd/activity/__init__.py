"""What was asked for and what it took, one row per ended request, kept over restarts. Never prompts, never keys."""
