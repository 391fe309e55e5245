"""The HTTP face of conversations: OpenAI's and Anthropic's protocols, and a page."""
