"""The same program as `lm-trials probe patching`."""

from lm_trials.probing.patching.probe import main

if __name__ == "__main__":
    main()
