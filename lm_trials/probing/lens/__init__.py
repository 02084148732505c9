"""The lens probe: the next token that each layer of a model predicts."""
