"""The cache: what lies prepared in a data folder, and the recipes and flags that fill it."""
