"""Generated stories: a grammar that writes children's stories, its words and its plots."""
