"""Harmony, the conversation format of gpt-oss: messages, their rendering, and the parsing of what a model emits.

The format is OpenAI's (openai/harmony, docs/format.md). Nothing here knows about models, sessions or terminals.
"""
