"""What a model predicts and answers: on a text (`text`), on prompts with answers (`prompts`, and the `held_out` ones of
the embedded model), and about what it read long ago (`needle`).

Each of them is a list of items that `run` measures on the engine, as a chat would run it, and the results of those that
are measured. What is measured is kept in a `journal` until all is done; `report` shows it.
"""
