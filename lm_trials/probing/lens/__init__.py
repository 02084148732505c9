"""The lens probe: what a model would say if it stopped at a layer."""
