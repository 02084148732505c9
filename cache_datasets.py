"""Fetch data sets and prepare them once: the same program as `lm-trials cache`."""

from lm_trials.commands.cache import main

if __name__ == "__main__":
    main()
