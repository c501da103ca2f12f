"""Images and sound in chats: what a client may send, and what becomes of it before the engine sees it."""
