"""The prompts whose continuations are scored with a component swapped."""

import pytest

from lm_trials.console import UsageError
from lm_trials.probing.flags import TextArguments
from lm_trials.probing.patching.flags import PatchingArguments
from lm_trials.probing.patching.report import asked_prompts
from prepare_tinystories import main


def test_only_prompts_that_ask_for_the_feature_are_taken(tiny_data):
    words = [
        "--corpus",
        "tiny",
        "--vocab_size",
        "400",
        "--filtering",
        "features=Twist",
        "--dataset_name",
        "asked-twist",
    ]
    main(["pretokenize", *words, "--data_cache_dir", str(tiny_data)])
    texts = TextArguments(dataset_name="asked-twist", dataset_split="train", data_cache_dir=str(tiny_data))
    assert len(asked_prompts(texts, PatchingArguments(feature="Twist", num_generations=2))) == 2
    with pytest.raises(UsageError, match="--dataset_name asked-twist: no prompt asks for Nothing; give a set"):
        asked_prompts(texts, PatchingArguments(feature="Nothing", num_generations=2))
