"""Sources: where stories come from, read as streams, and into files that a killed process leaves whole."""
