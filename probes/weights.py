"""The same program as `lm-trials probe weights`."""

from lm_trials.probing.weights.probe import main

if __name__ == "__main__":
    main()
