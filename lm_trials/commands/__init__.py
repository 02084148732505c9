"""The five programs that the scripts at the top level and `lm-trials` run: train, tune, evaluate, prepare, cache."""
