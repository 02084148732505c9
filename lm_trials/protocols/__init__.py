"""Protocols: seeded, versioned changes to a corpus, and the protocol sets that they make."""
