"""The same program as `lm-trials probe diversity`."""

from lm_trials.probing.diversity.probe import main

if __name__ == "__main__":
    main()
