"""Writing: a model that writes stories, is asked for them or talks, seeded and in batches."""
