"""Feature scores: what a model writes, against what it was asked for."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_model

import eval_checkpoint
import prepare_tinystories
from lm_trials.evaluation.feature_scores import Generation, cut_story, score_features, words_used, write_generations
from lm_trials.protocols.set_texts import set_texts
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.tokens.tokenizers import load_tokenizer


def generations_of(records, asked=None):
    return [
        Generation(
            str(n), "", "", row["story"], "", tuple(row["features"] if asked is None else asked), tuple(row["words"])
        )
        for n, row in enumerate(records)
    ]


RECORDS = list(generate_stories(300, seed=2))


def test_stories_of_the_generator_have_just_what_they_were_asked_for():
    rows = score_features(generations_of(RECORDS))
    for row in rows:
        if row["slice"].startswith("asked"):
            assert row["estimate"] == ("!=" not in row["slice"])
    assert {row["slice"] for row in rows if "Twist" in row["slice"]} == {"asked=Twist", "asked!=Twist"}
    asked = sum("Twist" in record["features"] for record in RECORDS)
    assert [row["n"] for row in rows if "Twist" in row["slice"]] == [asked, 300 - asked]


def test_stories_asked_for_something_else_do_not():
    """The neighbour: the same stories under prompts that all ask for a twist."""
    rows = {row["slice"]: row for row in score_features(generations_of(RECORDS, asked=["Twist"]))}
    share = np.mean(["Twist" in record["features"] for record in RECORDS])
    assert rows["asked=Twist"]["estimate"] == pytest.approx(share)
    assert rows["asked=Twist"]["lower"] < share < rows["asked=Twist"]["upper"]
    # The width of a binomial proportion's interval.
    width = rows["asked=Twist"]["upper"] - rows["asked=Twist"]["lower"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 300), rel=0.15)
    assert "asked!=Twist" not in rows
    assert "asked=Dialogue" not in rows


def test_the_generators_stories_use_their_words():
    assert np.mean([words_used(generation) for generation in generations_of(RECORDS)]) > 0.99
    others = [g.words for g in generations_of(RECORDS[::-1])]
    mixed = [
        Generation("", "", "", g.generation, "", (), words)
        for g, words in zip(generations_of(RECORDS), others, strict=True)
    ]
    assert np.mean([words_used(generation) for generation in mixed]) < 0.5


@pytest.mark.parametrize(
    ("text", "story"),
    [
        (" Tim ran.\nHe fell.", "Tim ran.\nHe fell."),
        (" Tim ran.\nSummary: x\nStory: y", "Tim ran."),
        ("Features: Twist\nStory: y", ""),
        ("He said: go. Words are: few", "He said: go. Words are: few"),
        ("Mom said, Important Words: be kind.", "Mom said, Important Words: be kind."),
    ],
)
def test_a_story_ends_at_the_next_instruction_line(text, story):
    assert cut_story(text) == story


@pytest.fixture(scope="module")
def data(tiny_data):
    flags = ["--corpus", "tiny", "--vocab_size", "400", "--data_cache_dir", str(tiny_data)]
    prepare_tinystories.main(
        ["pretokenize", *flags, "--dataset_name", "asks", "--adversarial_training", "features=Twist:1"]
    )
    return tiny_data


def test_prompts_are_the_sets_and_results_come_in_its_order(data):
    tokenizer = load_tokenizer(str(data / "tok400"))
    model = tiny_model("llama", vocab_size=400, positions=1024)
    texts = list(set_texts("asks", data, "validation"))
    written = write_generations(model, tokenizer, texts, max_new_tokens=5, temperature=0.0)
    assert [g.record_id for g in written] == [text.record_id for text in texts]
    assert [g.target for g in written] == [text.story for text in texts]
    assert all(g.clean_prefix + " " + g.target == text.text for g, text in zip(written, texts, strict=True))
    alone = [write_generations(model, tokenizer, [text], 5, temperature=0.0)[0] for text in texts[:3]]
    assert alone == written[:3]  # others in the batch, and their padding, change nothing
    sampled = write_generations(model, tokenizer, texts, max_new_tokens=5, seed=1)
    alone = [write_generations(model, tokenizer, [text], 5, seed=1)[0] for text in texts[:3]]
    assert alone == sampled[:3]  # nor do they change what is drawn
    assert write_generations(model, tokenizer, texts, max_new_tokens=5, seed=2) != sampled


@pytest.mark.end_to_end
def test_a_long_prompt_does_not_shorten_the_stories_of_others(data):
    tokenizer = load_tokenizer(str(data / "tok400"))
    model = tiny_model("llama", vocab_size=400, positions=512)
    with torch.no_grad():
        model.lm_head.weight[[1, 2]] = 0  # hardly ever an end
    texts = list(set_texts("asks", data, "train"))[:64]
    long = replace(texts[0], text=texts[0].text.replace("\nStory:", "\nWords: " + "cat, " * 80 + "\nStory:"))
    counts = []
    for chosen in (texts, [*texts[1:], long]):
        written = write_generations(model, tokenizer, chosen, max_new_tokens=60, temperature=0.0)
        counts.append([len(tokenizer(g.generation)["input_ids"]) for g in written])
    assert np.median(counts[0]) == pytest.approx(np.median(counts[1]), rel=0.2)


def test_few_prompts_are_said_to_be_few(data, folder, tmp_path, capsys):
    flags = ["--model_dir", str(folder), "--dataset_name", "asks", "--data_cache_dir", str(data), "--use_cpu", "True"]
    eval_checkpoint.main([*flags, "--score_features", "--max_new_tokens", "3", "--output_dir", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert "fewer than --num_generations 256" in err
    assert "fewer than 256 prompts for" in err


@pytest.fixture
def folder(data, tmp_path):
    tiny_model("llama", vocab_size=400, positions=1024).save_pretrained(tmp_path / "model")
    load_tokenizer(str(data / "tok400")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_command_writes_stories_scores_and_a_table(data, folder, tmp_path, capsys):
    flags = ["--model_dir", str(folder), "--dataset_name", "asks", "--data_cache_dir", str(data), "--use_cpu", "True"]
    more = [
        "--score_features",
        "--num_generations",
        "3",
        "--max_new_tokens",
        "6",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    rows = eval_checkpoint.main([*flags, *more])
    (asked,) = [row for row in rows if row["slice"] == "asked=Twist"]
    assert asked["n"] == 3
    assert 0 <= asked["estimate"] <= 1
    out = capsys.readouterr().out
    assert "not asked for" in out
    assert "n=3" in out
    table = pd.read_parquet(tmp_path / "out" / "generations.parquet")
    assert list(table["target"]) == [text.story for text in set_texts("asks", data, "validation")][:3]
    assert json.loads((tmp_path / "out" / "feature_scores.json").read_text())["rows"]
    assert (
        len(pd.read_csv(tmp_path / "out" / "feature_scores.csv"))
        == len([r for r in rows if "metric" in r and "has_" in r["metric"]]) + 1
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset_name", "tiny"], "tiny-validation has no prompts"),
        (["--dataset_name", "asks", "--num_generations", "0"], "--num_generations 0"),
        (["--dataset_name", "asks", "--dataset_split", "valid"], "did you mean validation"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_evaluated(data, folder, tmp_path, capsys, more, message):
    flags = ["--model_dir", str(folder), "--data_cache_dir", str(data), "--score_features", "--output_dir"]
    with pytest.raises(SystemExit) as left:
        eval_checkpoint.main([*flags, str(tmp_path / "out"), *more])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
