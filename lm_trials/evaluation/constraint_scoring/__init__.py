"""Constraint scores: has a story what it was asked for, and what judges that."""
