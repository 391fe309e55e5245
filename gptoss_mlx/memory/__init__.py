"""How much memory there is, how much a model takes, and what is given up so that it fits."""
