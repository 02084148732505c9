"""Batches are drawn without repetition, mixtures in exact shares, controls are what their names say."""

import json

import numpy as np
import pytest
from tiny_models import tiny_tokenizer

from lm_trials.console import UsageError
from lm_trials.probing.diversity.batches import CONTROLS, TextSet, control_batches, open_text_sets, token_batches
from lm_trials.probing.diversity.flags import DiversityArguments
from lm_trials.probing.diversity.measures import (
    common_length,
    compression_ratio,
    distinct_share,
    first_words,
    text_measures,
)
from lm_trials.stories.corpora import open_records


@pytest.fixture
def files(tmp_path):
    """Two files of 40 texts each."""
    for name in ("cats", "dogs"):
        lines = [json.dumps({"text": f"{name} number {number} sat on a mat."}) for number in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def arguments(**changed):
    return DiversityArguments(**{"num_batches": 3, "batch_size": 8, **changed})


def test_no_text_is_drawn_twice_and_the_seed_draws_others(files):
    name = [str(files / "cats.jsonl")]
    (first,), (again,), (other,) = (open_text_sets(arguments(dataset_name=name, seed=seed)) for seed in (0, 0, 1))
    drawn = [text for batch in first.batches for text in batch]
    assert [len(batch) for batch in first.batches] == [8, 8, 8]
    assert len(set(drawn)) == len(drawn)
    assert first == again
    assert first.batches != other.batches
    assert drawn != sorted(drawn, key=lambda text: int(text.split()[2]))


def test_a_prepared_corpus_is_read_by_its_train_split(tiny_data):
    (texts,) = open_text_sets(arguments(dataset_name=["tiny"], data_cache_dir=str(tiny_data)))
    train = set(open_records(tiny_data / "tiny", "train")["story"])
    assert all(text in train for batch in texts.batches for text in batch)
    (validation,) = open_text_sets(
        arguments(
            dataset_name=["tiny"], data_cache_dir=str(tiny_data), dataset_split="test", num_batches=1, batch_size=2
        )
    )
    assert not any(text in train for batch in validation.batches for text in batch)


def test_each_batch_of_a_mixture_has_the_shares_asked_for(files):
    names = [str(files / "cats.jsonl"), str(files / "dogs.jsonl")]
    cats, dogs, mixture = open_text_sets(arguments(dataset_name=names, data_mix=".25,.75"))
    assert (cats.name, dogs.name, mixture.name) == ("cats", "dogs", "0.25 cats + 0.75 dogs")
    assert [sum("cats" in text for text in batch) for batch in mixture.batches] == [2, 2, 2]
    assert [sum("cats" in text for text in batch) for batch in cats.batches] == [8, 8, 8]
    assert len(open_text_sets(arguments(dataset_name=names))) == 2
    (parts,) = open_text_sets(arguments(dataset_name=[str(files)], dataset_config_name="cats+dogs"))
    assert [sum("cats" in text for text in batch) for batch in parts.batches] == [4, 4, 4]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_batches": 6}, "--num_batches 6 of --batch_size 8 need 48 texts, but cats has 40; lower one of them"),
        ({"data_mix": ".5,.5"}, "--data_mix .5,.5: "),
        ({"dataset_name": ["nowhere.jsonl"]}, "nowhere.jsonl does not exist"),
        ({"dataset_split": "dev"}, "--dataset_split dev: did you mean"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(files, changed, message):
    with pytest.raises(UsageError) as error:
        open_text_sets(arguments(**{"dataset_name": [str(files / "cats.jsonl")], **changed}))
    assert message.replace("did you mean", "") in str(error.value).replace("did you mean", "")


def test_a_mixture_names_the_part_that_ended(files):
    args = arguments(
        dataset_name=[str(files)], dataset_config_name="cats+dogs", data_mix=".25,.75", num_batches=5, batch_size=12
    )
    with pytest.raises(UsageError, match=r"-cats-dogs has 5\d \(the part dogs has no more\); lower one of them"):
        open_text_sets(args)


def test_texts_are_cut_off_after_the_mark_and_max_length():
    tokenizer = tiny_tokenizer()
    (batch,) = token_batches(TextSet("a", [["One day, a cat sat on a mat.", "a cat"]]), tokenizer, max_length=6)
    assert [len(text) for text in batch] == [6, len(tokenizer("a cat", add_special_tokens=False)["input_ids"]) + 1]
    assert all(text[0] == tokenizer.bos_token_id for text in batch)


def test_controls_are_as_long_as_the_texts_and_what_they_are_called():
    tokenizer = tiny_tokenizer()
    like = [[np.arange(1, 40), np.arange(1, 90)], [np.arange(1, 60), np.arange(1, 70)]]
    made = {name: control_batches(name, like, 4, tokenizer, seed=0) for name in CONTROLS}
    for name in ("one token", "random tokens"):
        assert [[len(text) for text in batch] for batch in made[name]] == [[39, 89], [59, 69]] * 2
    ordinary = set(np.concatenate([text[1:] for batch in made["one token"] for text in batch])) - {
        tokenizer.eos_token_id
    }
    assert len(ordinary) == 1
    assert len(set(np.concatenate([text[1:] for batch in made["random tokens"] for text in batch]))) > 100
    assert made["one batch again"] == [like[0]] * 4
    again = control_batches("random tokens", like, 4, tokenizer, seed=0)
    other = control_batches("random tokens", like, 4, tokenizer, seed=1)
    assert np.array_equal(again[3][1], made["random tokens"][3][1])
    assert not np.array_equal(other[3][1], made["random tokens"][3][1])


def test_measures_see_the_same_number_of_words_of_every_batch():
    short = TextSet("short", [["one two three four five"] * 2] * 3)
    long = TextSet("long", [["one two three four five"] * 9] * 3)
    assert common_length([short, long], None) == 10
    assert common_length([short, long], 7) == 7
    assert text_measures(short, 10) == text_measures(long, 10)
    assert text_measures(short, 10) != text_measures(long, 20)
    with pytest.raises(UsageError, match=r"--words_per_batch 11: batch 0 of short has 10 words; lower it"):
        common_length([short, long], 11)


def test_more_varied_texts_have_more_distinct_ngrams_and_compress_less():
    varied = [" ".join(f"word{number * 7919 % 997}" for number in range(300))]
    repeated = ["the cat sat on the mat and " * 43]
    ours, control = (first_words(texts, 300) for texts in (varied, repeated))
    assert compression_ratio(ours) < compression_ratio(control)
    for n in (1, 2, 3):
        assert distinct_share(ours, n) > distinct_share(control, n)
    measured = text_measures(TextSet("a", [varied, repeated, varied] * 4), 300)
    assert measured["distinct 2-grams"].n == 12
    assert measured["distinct 2-grams"].lower < measured["distinct 2-grams"].upper


def test_ngrams_do_not_cross_texts_and_punctuation_does_not_count():
    assert distinct_share([["a", "b"], ["a", "b"]], n=2) == 0.5
    assert distinct_share([["a", "b", "a", "b"]], n=2) == pytest.approx(2 / 3)
    assert distinct_share([["Cat", "cat,", "dog"]], n=1) == pytest.approx(2 / 3)
    assert np.isnan(distinct_share([["a"], ["b"]], n=2))
