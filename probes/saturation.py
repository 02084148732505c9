"""The same program as `lm-trials probe saturation`."""

from lm_trials.probing.saturation.probe import main

if __name__ == "__main__":
    main()
