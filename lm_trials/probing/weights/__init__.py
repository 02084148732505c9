"""The weights probe: what fine-tuning changed, and what undoes it."""
