"""Tokens: tokenizers, token stores, the order of documents, mixtures, blocks and streams."""
