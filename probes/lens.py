"""The same program as `lm-trials probe lens`."""

from lm_trials.probing.lens.probe import main

if __name__ == "__main__":
    main()
