"""The same program as `lm-trials probe embeddings`."""

from lm_trials.probing.embeddings.probe import main

if __name__ == "__main__":
    main()
