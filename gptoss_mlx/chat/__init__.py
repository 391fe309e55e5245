"""A conversation that goes on: the session, its tools, and the terminal that a person types into."""
