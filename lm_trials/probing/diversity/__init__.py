"""The diversity probe: the expected distance between batches of texts."""
