"""How much memory there is, what a model will take of it, and what is given up so that it fits."""
