"""From chat messages to a prompt, and from raw text back to messages."""
