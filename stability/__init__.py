"""Trouble in training: what counts as it, the record of how it came, and what is done about it."""
