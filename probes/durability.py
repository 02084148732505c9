"""The same program as `lm-trials probe durability`."""

from lm_trials.probing.durability.probe import main

if __name__ == "__main__":
    main()
