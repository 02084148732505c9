"""Prepare stories, vocabularies, token stores and protocol sets: the same program as `lm-trials prepare`."""

from lm_trials.commands.prepare import main

if __name__ == "__main__":
    main()
