"""Records, tokenizers, token stores and blocks.  No module of this room loads torch when it is imported."""
