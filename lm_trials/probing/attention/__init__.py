"""The attention probe: where the heads of a model look."""
