"""What `--dataset_name` may name: a prepared corpus first, then a path."""

import pytest
from datasets import Dataset, DatasetDict
from tiny_evaluations import write_stories

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.data.datasets import dataset_of, open_dataset, open_prepared
from lm_trials.evaluation.domains import in_domain, training_data
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.protocols.set_stores import open_set
from lm_trials.tokens.tokenizers import load_tokenizer


def opened(name, **options):
    args = EvaluationArguments(**options)
    return dataset_of(args, str(name)).select(args.dataset_split, args.max_eval_samples)


def ids(dataset):
    return [record["record_id"] for record in dataset.read()]


def test_a_prepared_corpus_gives_its_validation_split_unless_told_otherwise(tiny_data):
    splits = {split: opened("tiny", data_cache_dir=str(tiny_data), dataset_split=split) for split in ("train", "test")}
    validation = opened("tiny", data_cache_dir=str(tiny_data))
    assert validation.name == "tiny-validation"
    assert validation.total == len(ids(validation)) > 0
    assert len(ids(splits["train"])) > 300
    assert not set(ids(validation)) & set(ids(splits["train"]))
    assert ids(opened(tiny_data / "tiny")) == ids(validation)  # by its path
    limited = opened("tiny", data_cache_dir=str(tiny_data), max_eval_samples=2)
    assert (ids(limited), limited.total) == (ids(validation)[:2], 2)
    with pytest.raises(UsageError, match="--dataset_split valid: did you mean validation"):
        opened("tiny", data_cache_dir=str(tiny_data), dataset_split="valid")


def test_a_prepared_name_comes_before_a_path_of_that_name(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    write_stories(tmp_path / "tiny/stories.jsonl", 3)
    assert opened("tiny", data_cache_dir=str(tiny_data)).name == "tiny-validation"
    assert len(ids(opened("tiny", data_cache_dir="elsewhere"))) == 3


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mine/stories.v2.jsonl", "stories"),
        ("mine/.hidden.jsonl", "hidden.jsonl"),
        ("mine/-a\n.jsonl", "a-"),
        ("mine", "mine"),
        ("mine/empty/..", "mine"),
        (f"mine/{'é' * 120}.jsonl", "é" * 50),
    ],
)
def test_a_path_has_a_label_that_is_a_folders_name(tmp_path, monkeypatch, name, label):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/empty").mkdir(parents=True)
    write_stories(tmp_path / (name if name.endswith("jsonl") else "mine/stories.jsonl"), 3)
    dataset = opened(name)
    assert dataset.name == label
    assert len(ids(dataset)) == 3


def test_a_path_is_read_whole_again_and_again(tmp_path):
    write_stories(tmp_path / "stories.jsonl", 20)
    dataset = opened(tmp_path / "stories.jsonl")
    assert len(ids(dataset)) == 20
    assert ids(dataset) == ids(dataset)
    write_stories(tmp_path / "stories.jsonl", 20, seed=1)
    assert opened(tmp_path / "stories.jsonl").fingerprint != dataset.fingerprint


def test_the_splits_of_a_path_are_disjoint_and_exhaustive(tmp_path):
    write_stories(tmp_path / "stories.jsonl", 300)
    whole = ids(opened(tmp_path / "stories.jsonl"))
    parts = [ids(opened(tmp_path / "stories.jsonl", dataset_split=split)) for split in ("train", "validation", "test")]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    assert all(parts)
    assert opened(tmp_path / "stories.jsonl", dataset_split="test").name == "stories-test"


def test_a_saved_data_set_keeps_its_own_splits(tmp_path):
    DatasetDict({"mine": Dataset.from_list([{"text": "One day."}])}).save_to_disk(tmp_path / "saved")
    assert len(ids(opened(tmp_path / "saved", dataset_split="mine"))) == 1
    with pytest.raises(UsageError, match="--dataset_split yours"):
        ids(opened(tmp_path / "saved", dataset_split="yours"))


def test_parts_and_shares_mean_nothing_for_what_is_prepared(tiny_data):
    for option, why in (
        ({"data_mix": ".3,.7"}, "one data set"),
        ({"dataset_config_name": "part"}, "has no configurations"),
    ):
        with pytest.raises(UsageError, match=why):
            opened("tiny", data_cache_dir=str(tiny_data), **option)


def test_a_mixture_says_which_part_ended_it(tmp_path, capsys):
    (tmp_path / "mix").mkdir()
    write_stories(tmp_path / "mix/long.jsonl", 50)
    write_stories(tmp_path / "mix/short.jsonl", 3, seed=1)
    options = {"dataset_config_name": "long+short", "data_mix": ".5,.5"}
    assert len(ids(opened(tmp_path / "mix", **options))) <= 7
    assert "its part short has only 3" in capsys.readouterr().err
    assert len(ids(opened(tmp_path / "mix", max_eval_samples=4, **options))) == 4
    assert capsys.readouterr().err == ""


def test_names_with_a_plus_are_a_mixture_of_prepared_and_raw_data(tiny_data, tmp_path):
    write_stories(tmp_path / "more.jsonl", 50)
    options = {"data_cache_dir": str(tiny_data), "data_mix": ".5,.5", "max_eval_samples": 4}
    mixture = opened(f"tiny+{tmp_path / 'more.jsonl'}", **options)
    alone = [ids(opened(name, data_cache_dir=str(tiny_data))) for name in ("tiny", tmp_path / "more.jsonl")]
    assert ids(mixture) == [name for pair in zip(*alone, strict=False) for name in pair][:4]
    assert ids(opened("tiny", data_cache_dir=str(tiny_data), max_eval_samples=4)) != ids(mixture)
    assert len(mixture.parts) == 2


def test_each_kind_refuses_what_it_does_not_have(tiny_data):
    corpus = open_dataset("tiny", tiny_data)
    with pytest.raises(UsageError, match=r"tiny is a corpus of stories and has no prompts .* instruct --corpus tiny"):
        corpus.pairs()
    with pytest.raises(UsageError, match="tiny-validation has no prompts; name a protocol set"):
        corpus.select().prompts()


def test_a_flag_that_needs_prepared_data_says_what_there_is(tiny_data, tmp_path):
    with pytest.raises(UsageError, match=r"--coverage tinny is not prepared in .* \(there: .*tiny.*\)"):
        open_prepared("tinny", tiny_data, "coverage")
    with pytest.raises(UsageError, match=r"\(there: nothing\)"):
        open_prepared("tiny", tmp_path, "coverage")


def test_a_set_with_transforms_is_evaluated_on_the_changed_text_and_is_data_of_its_own(tiny_data):
    flags = ["pretokenize", "--corpus", "tiny", "--data_cache_dir", str(tiny_data), "--vocab_size", "400"]
    steps = ["shuffle_sentences", "truncate_story:2"]
    for name, transform in {"one": steps, "other": steps[::-1], "none": []}.items():
        more = ["--transform", *transform] if transform else []
        prepare_tinystories.main([*flags, "--dataset_name", f"evaluated-{name}", *more])
    found = {name: opened(f"evaluated-{name}", data_cache_dir=str(tiny_data)) for name in ("one", "other", "none")}
    texts = {name: [record["story"] for record in dataset.read()] for name, dataset in found.items()}
    tokenizer = load_tokenizer(str(tiny_data / "tok400"))
    for name in found:
        store = open_set(f"evaluated-{name}", tiny_data, tokenizer, "validation")
        assert texts[name] == [tokenizer.decode(store.tokens(n)[1:]) for n in range(len(store))]
        data = {"content": store.manifest["corpus"]["content"], "protocol": store.manifest["protocol"]}
        trained = training_data({"outcome": {"data": data}}, tiny_data)
        assert {other: in_domain(trained, dataset.parts) for other, dataset in found.items()} == {
            other: "yes" if other == name else "no" for other in found
        }
    assert len(set(map(tuple, texts.values()))) == 3


@pytest.fixture(scope="module")
def adversarial(tiny_data):
    """A protocol set whose instructions name a feature that the stories do not have."""
    flags = ["pretokenize", "--corpus", "tiny", "--data_cache_dir", str(tiny_data), "--vocab_size", "400"]
    if not (tiny_data / "lies").exists():
        more = [
            "--adversarial_training",
            "features=Twist:1",
            "--refusal",
            "features=BadEnding:1",
            "--dataset_name",
            "lies",
        ]
        prepare_tinystories.main([*flags, *more])
    return "lies"


def test_a_protocol_set_is_found_by_its_path_and_with_a_slash_too(tiny_data, adversarial, tmp_path):
    by_name = opened(adversarial, data_cache_dir=str(tiny_data))
    for name, place in ((f"{adversarial}/", tiny_data), (tiny_data / adversarial, tmp_path)):
        found = opened(name, data_cache_dir=str(place))
        assert (found.name, found.fingerprint) == (by_name.name, by_name.fingerprint)
        assert ids(found) == ids(by_name)


def test_stories_of_a_mixture_are_those_of_its_members_before_their_protocols(tiny_data, adversarial):
    names = (adversarial, "tiny")
    alone = {name: list(open_dataset(name, tiny_data).stories("train")) for name in names}
    mixed = list(open_dataset("+".join(names), tiny_data).stories("train"))
    assert None in alone[adversarial]  # a refusal
    both = [record for pair in zip(*(alone[name] for name in names), strict=True) for record in pair]
    assert mixed == both[: len(mixed)]
    assert len(mixed) >= len(both) - 1
    asked = [record["features"] for record in open_dataset(adversarial, tiny_data).select("train").read()]
    assert asked != [record and record["features"] for record in alone[adversarial]]  # what the instructions say
