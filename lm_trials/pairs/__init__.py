"""Prompts with completions, conversations and plain texts for fine-tuning: layouts, sets, examples."""
