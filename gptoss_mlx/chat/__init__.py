"""A conversation: sessions, the answers in them, and how they are saved."""
