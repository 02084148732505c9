"""The feature probe: what of a story can be read linearly from hidden states."""
