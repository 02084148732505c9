"""Train a causal language model on stories: the same program as `lm-trials train`."""

from lm_trials.commands.train import main

if __name__ == "__main__":
    main()
