"""Learn from preferences or rewards: the same program as `lm-trials align`."""

from lm_trials.commands.align import main

if __name__ == "__main__":
    main()
