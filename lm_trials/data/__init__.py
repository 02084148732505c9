"""Data sets by name: what a name means, what is prepared, and the flags that prepare more."""
