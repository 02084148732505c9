"""Sets: what a protocol makes of a corpus, stored as what it changed."""
