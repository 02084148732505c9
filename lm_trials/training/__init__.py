"""Runs: their arguments, their manifest, the Trainer that counts every token."""
