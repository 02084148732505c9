"""The weights probe: what fine-tuning changed, and what of it can be taken back."""
