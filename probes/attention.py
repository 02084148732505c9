"""The same program as `lm-trials probe attention`."""

from lm_trials.probing.attention.probe import main

if __name__ == "__main__":
    main()
