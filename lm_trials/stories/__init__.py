"""Records of stories: where they come from, how they are split, and the corpora that they become on disk."""
