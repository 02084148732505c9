"""A latent city: what a model is asked about it, and how the answers are scored."""
