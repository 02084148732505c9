"""The same program as `lm-trials probe bias`."""

from lm_trials.probing.bias.probe import main

if __name__ == "__main__":
    main()
