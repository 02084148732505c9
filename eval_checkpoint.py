"""Evaluate runs and checkpoints on data sets: the same program as `lm-trials evaluate`."""

from lm_trials.commands.evaluate import main

if __name__ == "__main__":
    main()
