"""The chat in a terminal: reading what is typed, showing what is answered."""
