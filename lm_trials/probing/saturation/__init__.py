"""The saturation probe: metrics of what a run reads and writes at each checkpoint, and when they settle."""
