"""Probes: read-only measurements of models and of what they are trained on, each with its control."""
