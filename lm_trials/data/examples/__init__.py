"""Examples for fine-tuning: prompts with what answers them, and how they become tokens."""
