"""Probing: measurements of what a model sees in texts."""
