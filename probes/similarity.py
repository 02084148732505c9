"""The same program as `lm-trials probe similarity`."""

from lm_trials.probing.similarity.probe import main

if __name__ == "__main__":
    main()
