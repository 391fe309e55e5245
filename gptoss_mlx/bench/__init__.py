"""Measure a model on this machine: what was measured (`measure`) and how it is shown (`report`)."""
