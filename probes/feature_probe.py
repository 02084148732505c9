"""The same program as `lm-trials probe feature_probe`."""

from lm_trials.probing.feature_probe.probe import main

if __name__ == "__main__":
    main()
