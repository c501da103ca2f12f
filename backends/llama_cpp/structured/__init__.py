"""What a client wants an answer to look like, and the grammar that comes to."""
