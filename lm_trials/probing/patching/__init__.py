"""The patching probe: which part carries a difference between two models or two prompts."""
