"""The dashboard: runs, curves, snapshots, data and trials of a folder as pages; no torch before its playground."""
