"""Tables and figures; reads files only, never torch, never a model."""
