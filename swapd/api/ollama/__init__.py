"""Ollama's dialect as pure translation: its requests into OpenAI's, OpenAI's answers into its lines, its lists.

`request` reads what clients send, `answer` writes what they get, `listing` has the documents about models.
"""
