"""The embeddings probe: where tokens are, and how far training moved them."""
