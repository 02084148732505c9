"""Bias: a paired attribute in what a model writes, in its probabilities and in its hidden states."""
