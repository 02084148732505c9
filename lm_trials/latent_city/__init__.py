"""The latent city: geography, data sets of distances, and what a model infers about an unnamed city."""
