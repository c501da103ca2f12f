"""OpenAI's `/v1/responses` in terms of its chats."""
