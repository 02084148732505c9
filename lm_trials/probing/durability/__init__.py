"""The durability probe: what the order of the training data left in a model, in its losses and in its weights."""
