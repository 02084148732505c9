"""Fine-tune a model on prompts and completions: the same program as `lm-trials tune`."""

from lm_trials.commands.tune import main

if __name__ == "__main__":
    main()
