"""The latent city: geography, data sets of distances, and what a model has inferred of a city it was never told of."""
