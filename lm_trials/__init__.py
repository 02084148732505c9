"""Controlled experiments on small language models, on Hugging Face's own parts."""

__version__ = "0.1.0"
