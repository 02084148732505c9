"""Constraint scores: by hand, against their controls, and from the command line."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Features, List, Value
from tiny_models import tiny_model

from lm_trials.console import UsageError
from lm_trials.evaluation import constraints
from lm_trials.evaluation.constraint_scores import (
    LISTENING,
    OTHERS,
    RECORDS,
    WRITTEN,
    judged,
    over_prompts,
    record_losses,
    record_rows,
    score,
    score_rows,
    values_for_others,
    write_for,
)
from lm_trials.evaluation.constraint_tasks import Task, file_tasks, pair_tasks, task_prompts
from lm_trials.evaluation.judges import DetectorJudge, balanced_accuracy, judge_quality, train_classifiers
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE, instruct_prompts
from lm_trials.pairs.pairs import open_pairs, write_pairs
from lm_trials.stories.corpora import open_records
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.tokens.tokenizers import load_tokenizer

JUDGE = DetectorJudge()
KNOWN = ("Twist", "Dialogue")
TASKS = [
    Task("a", "p", ("take", "cat"), ("Twist",), "Tim took a cat. It turned out that Ben was a king!"),
    Task("b", "p", ("dog",), ("Twist", "Dialogue"), '"A dog!" said Tim. It turned out that it ran.'),
    Task("c", "p", ("red", "mouse"), (), "The mice were red."),
]


def found(rows, what, metric, name="all"):
    (row,) = [row for row in rows if (row["judged"], row["slice"], row["metric"]) == (what, name, metric)]
    return row


def stories(texts_PS, ended=True):
    return [judged(texts, JUDGE, [ended] * len(texts)) for texts in texts_PS]


def test_scores_by_hand():
    written = stories([["A dog took it.", "It turned out that the cat sat."], ["No."] * 2, ["Red mice.", "A mouse."]])
    rows = score_rows(TASKS, written, KNOWN, {})
    assert found(rows, WRITTEN, "words_used")["estimate"] == pytest.approx((0.5 + 0 + 0.75) / 3)
    assert found(rows, WRITTEN, "features_present")["estimate"] == pytest.approx((0.5 + 0) / 2)
    assert found(rows, WRITTEN, "features_present")["n"] == 2  # the third prompt asks for none
    assert found(rows, WRITTEN, "satisfied")["estimate"] == pytest.approx((0 + 0 + 0.5) / 3)
    assert found(rows, WRITTEN, "length")["estimate"] == pytest.approx((5.5 + 1 + 2) / 3)
    assert found(rows, WRITTEN, "length_ratio")["estimate"] == pytest.approx((5.5 / 12 + 1 / 10 + 2 / 4) / 3)
    assert found(rows, WRITTEN, "ended")["estimate"] == 1
    assert found(rows, WRITTEN, "has_Twist", "asked=Twist")["estimate"] == pytest.approx(0.25)
    assert found(rows, WRITTEN, "has_Twist", "asked!=Twist")["estimate"] == 0
    # The first prompt's stories against the others: dog and (red, mouse); the second has none of anything, ...
    assert found(rows, OTHERS, "words_used")["estimate"] == pytest.approx((((1 + 0) / 2 + 0) / 2 + 0 + 0) / 3)
    listening = found(rows, LISTENING, "words_used")["estimate"]
    assert listening == pytest.approx((0.5 + 0 + 0.75) / 3 - 0.25 / 3)


def test_the_records_own_stories_meet_their_constraints():
    rows = record_rows(TASKS, JUDGE, {})
    assert {found(rows, RECORDS, metric)["estimate"] for metric in ("words_used", "features_present", "satisfied")} == {
        1
    }
    assert {row["metric"] for row in rows}.isdisjoint({"ended", "length_ratio"})
    assert record_rows([dataclasses.replace(task, story="") for task in TASKS], JUDGE, {}) == []
    turned = [dataclasses.replace(a, story=b.story) for a, b in zip(TASKS, TASKS[1:] + TASKS[:1], strict=True)]
    assert found(record_rows(turned, JUDGE, {}), RECORDS, "words_used")["estimate"] == 0


def test_no_story_is_judged_against_its_own_prompt_as_another():
    tasks = [Task(str(n), "p", (f"word{n}",)) for n in range(25)]
    own = [judged([f"word{n}"], JUDGE, [True]) for n in range(25)]
    for seed in range(5):
        assert values_for_others(tasks, own, KNOWN, seed)["words_used"].max() == 0
    everything = [judged([" ".join(f"word{n}" for n in range(25))], JUDGE, [True])] * 25
    assert values_for_others(tasks, everything, KNOWN, 0)["words_used"].min() == 1


def test_the_stories_of_a_prompt_are_resampled_together():
    """Twice the same stories are no more evidence; twice the prompts are."""
    draws = np.random.default_rng(0)
    used = draws.integers(0, 3, size=60)
    tasks = [Task(str(n), "p", ("cat", "dog")) for n in range(60)]
    texts = [["", "a cat", "a cat, a dog"][number] for number in used]
    once = found(score_rows(tasks, stories([[t] for t in texts]), KNOWN, {}), WRITTEN, "words_used")
    twice = found(score_rows(tasks, stories([[t, t] for t in texts]), KNOWN, {}), WRITTEN, "words_used")
    more = found(score_rows(tasks * 2, stories([[t] for t in texts * 2]), KNOWN, {}), WRITTEN, "words_used")
    assert once == twice
    assert once["n"] == 60
    assert more["upper"] - more["lower"] < 0.85 * (once["upper"] - once["lower"])


def test_a_value_that_does_not_vary_has_wilsons_interval_or_none():
    assert over_prompts(np.zeros(85), "share of words").upper == pytest.approx(0.043, abs=0.001)
    assert np.isnan(over_prompts(np.zeros(85), "share of words", difference=True).upper)
    assert np.isnan(over_prompts(np.full(85, 0.5), "share of words").upper)
    assert over_prompts(np.array([np.nan]), "words") is None


GENERATED = list(generate_stories(1200, seed=4))


@pytest.mark.end_to_end
def test_a_classifier_tells_features_and_its_error_is_measured():
    texts, labels = [r["story"] for r in GENERATED], [r["features"] for r in GENERATED]
    judge = train_classifiers(texts[:800], labels[:800])
    has = {name: np.array([name in of for of in labels[800:]]) for name in judge.known}
    said = judge.features(texts[800:])
    right = {name: balanced_accuracy(has[name], np.array([name in of for of in said])) for name in judge.known}
    assert len(right) == 6
    assert min(estimate.estimate for estimate in right.values()) > 0.9
    shuffled = [labels[place] for place in np.random.default_rng(0).permutation(800)]
    said = train_classifiers(texts[:800], shuffled).features(texts[800:])
    chance = [balanced_accuracy(has[name], np.array([name in of for of in said])).estimate for name in judge.known]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.05)


def test_a_corpus_without_labels_trains_no_judge():
    with pytest.raises(UsageError, match="no feature has 10 of 30 records with it and 10 without"):
        train_classifiers([r["story"] for r in GENERATED[:30]], [[]] * 30)


def test_the_detectors_are_measured_on_held_out_records(tiny_data):
    rows = judge_quality(JUDGE, "tiny", tiny_data)
    assert {row["estimate"] for row in rows} == {1.0}
    held_out = sum(len(open_records(tiny_data / "tiny", split)) for split in ("validation", "test"))
    assert {row["n"] for row in rows} == {held_out}
    assert all(row["n"] == row["with"] + row["without"] and row["lower"] < 1 for row in rows)


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    """A model folder, and data sets of pairs and of conversations of 60 prompts each."""
    folder = tmp_path_factory.mktemp("constraints")
    tokenizer = load_tokenizer(tiny_data / "tok400")
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    for name, seed in (("model", 0), ("other", 1)):
        tiny_model("llama", vocab_size=400, positions=512, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        (folder / name / "run.json").write_text(
            json.dumps({"outcome": {"prompt_layout": "instruct"}, "replicate": {"seed": seed}})
        )
    more = Features({"words": List(Value("string")), "features": List(Value("string"))})
    write_pairs(rows_of("pairs"), folder / "data" / "made", "pairs", {"source": "test"}, more)
    write_pairs(rows_of("conversations"), folder / "data" / "chat", "conversations", {"source": "test"}, more)
    write_pairs(rows_of("pairs", bare=True), folder / "data" / "bare", "pairs", {"source": "test"})
    (folder / "data" / "tiny").symlink_to(tiny_data / "tiny")
    return folder


def rows_of(kind, bare=False):
    for number, record in enumerate(generate_stories(60, seed=8)):
        row = {"record_id": f"{number:032x}"}
        if kind == "pairs":
            row |= {"prompt": record["prompt"], "completion": record["story"]}
        else:
            row["messages"] = [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": record["prompt"]},
                {"role": "assistant", "content": record["story"]},
            ]
            row["num_prompt"] = 0
        if not bare:
            row |= {"words": record["words"], "features": record["features"]}
        yield ("train", "validation", "test")[number % 3], row


class Scripted(Storyteller):
    """A storyteller that says what it is told to say to each key."""

    def write(self, prompts, keys, max_new_tokens, sampling, batch_size=16, **options):
        return [self.tokenizer.encode(script[key], add_special_tokens=False)[:max_new_tokens] for key in keys]


script = {}


def scripted(data, says):
    tokenizer = load_tokenizer(data / "model")
    tasks = pair_tasks("made", data / "data", "validation", 100)
    script.clear()
    script.update({task.record_id: says(task) for task in tasks})
    model = tiny_model("llama", vocab_size=400, positions=4096)
    teller = Scripted("scripted", model, tokenizer, "instruct")
    written = write_for(teller, tasks, JUDGE, Sampling(), [0, 1], max_new_tokens=1000)
    return score([written], JUDGE, None, 0)


def test_one_who_listens_is_told_from_one_who_does_not(data):
    listening = scripted(data, lambda task: task.story)
    story = pair_tasks("made", data / "data", "validation", 1)[0].story
    deaf = scripted(data, lambda task: story)
    for metric in ("words_used", "features_present", "satisfied"):
        assert found(listening, WRITTEN, metric)["estimate"] == found(listening, RECORDS, metric)["estimate"]
        assert found(listening, LISTENING, metric)["estimate"] > 0.3
        row = found(deaf, LISTENING, metric)
        assert abs(row["estimate"]) < 0.1
        assert found(deaf, RECORDS, metric) == found(listening, RECORDS, metric)
    assert found(listening, LISTENING, "words_used")["lower"] > 0.3
    assert found(listening, WRITTEN, "length_ratio")["estimate"] == 1
    assert found(listening, WRITTEN, "ended")["estimate"] == 1
    long = scripted(data, lambda task: task.story + " the end" * 900)
    assert found(long, WRITTEN, "ended")["estimate"] == 0


def test_the_loss_of_a_record_after_its_prompt_is_that_of_a_plain_pass(data):
    tokenizer, model = load_tokenizer(data / "model"), tiny_model("llama", vocab_size=400, positions=400)
    tasks = [Task("a", "Write.", story="A cat sat."), Task("b", "Write about a dog.", story="A red dog " * 3)]
    teller = Storyteller("tiny", model, tokenizer, "instruct")
    prompts = task_prompts(teller, tasks)
    losses = record_losses(teller, tasks, prompts)
    for place, task in enumerate(tasks):
        story = tokenizer.encode(task.story, add_special_tokens=False)
        for column, prompt in enumerate((prompts[place], prompts[1 - place])):
            with torch.no_grad():
                told = model(torch.tensor([[*prompt, *story]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            nats = -sum(told[at, token].item() for at, token in enumerate(story))
            assert losses[place, column] == pytest.approx(nats, rel=1e-5)
    assert losses[0, 0] != losses[0, 1]
    assert np.allclose(record_losses(teller, tasks, [prompts[0], prompts[0]]).T[0], losses[[0, 1], [0, 1]])
    model.config.max_position_embeddings = len(prompts[0]) + 5
    assert np.isnan(record_losses(teller, tasks, prompts)[1]).all()


def run(data, *more, model="model", out="out"):
    models = [str(data / name) for name in model.split()]
    flags = ["--model", *models, "--data_cache_dir", str(data / "data"), "--output_dir", str(data / out)]
    return constraints.main([*flags, "--use_cpu", "--max_new_tokens", "10", *map(str, more)])


def test_the_command_writes_scores_stories_and_what_judged_them(data, capsys):
    rows = run(
        data, "--dataset_name", "made", "--num_prompts", 12, "--seeds", "0,1", "--coverage", "tiny", "--judge_corpus",
        "tiny",
    )  # fmt: skip
    table = pd.read_csv(data / "out/constraint_scores.csv")
    assert list(table.columns[-5:]) == ["estimate", "lower", "upper", "n", "unit"]
    assert len(table) == len(rows)
    assert set(table["judged"]) == {WRITTEN, OTHERS, LISTENING, RECORDS}
    assert (table["n"] <= 12).all()
    written = pq.read_table(data / "out/stories.parquet").to_pylist()
    assert len(written) == 24
    assert [story["sampling_seed"] for story in written[:2]] == [0, 1]
    assert written[0]["story"] != written[1]["story"]
    records = {row["record_id"]: row for row in open_pairs("made", data / "data").splits["validation"]}
    assert all(records[s["record_id"]]["words"] == s["words"] for s in written)
    assert {s["rarest_word"] for s in written} <= {"unseen", "rare", "common"}
    sizes = table[(table["metric"] == "length") & (table["judged"] == WRITTEN)].set_index("slice")["n"]
    assert sizes["all"] == 12 == sizes[[name for name in sizes.index if name.startswith("rarest_word=")]].sum()
    assert pd.read_csv(data / "out/coverage.csv")["count"].is_monotonic_increasing
    assert len(pd.read_csv(data / "out/judge.csv")) > 0
    assert json.loads((data / "out/constraints.json").read_text())["models"][0]["mode"] == "instruct"
    shown = capsys.readouterr()
    assert "12 prompts, 2 stories each" in " ".join(shown.out.split())
    assert "words used" in shown.out
    assert "rarest words of the prompts in tiny" in shown.out
    assert "balanced accuracy" in shown.out


def test_held_out_judges_stand_beside_the_scores_in_one_table(data):
    flags = ["--dataset_name", "made", "--num_prompts", 8, "--judge_corpus", "tiny"]
    run(data, *flags, "--base_name_or_path", "start", model="model other", out="judged")
    table = (
        pd.read_csv(data / "judged/constraint_scores.csv").query("slice == 'all'").set_index(["row", "model", "judged"])
    )
    judges = {"distinct_2", "repeated_4grams", "copied_prompt", "other_judge"}
    for name in ("model", "other"):
        own = table.loc[("model", str(data / name), WRITTEN)].set_index("metric")
        assert judges | {"words_used", "base_loss"} <= {*own.index}
        assert own.loc["base_loss", "unit"] == "nats per token"
        assert not (judges | {"base_loss"}) & {*table.loc[("model", str(data / name), LISTENING), "metric"]}
    records = table.loc[("records", "records' own stories", RECORDS)].set_index("metric")["estimate"]
    assert judges <= {*records.index}
    assert "base_loss" not in records  # each model has another base
    assert records["copied_prompt"] < 0.1
    assert {*pd.read_csv(data / "judged/judge.csv")["judge"]} == {"detector", "classifier"}
    run(data, *flags, "--base_name_or_path", data / "other", out="judged")
    table = pd.read_csv(data / "judged/constraint_scores.csv").query("metric == 'base_loss' and slice == 'all'")
    assert {*table["judged"]} == {WRITTEN, RECORDS}


def test_the_same_command_gives_the_same_files_whatever_the_batch(data):
    flags = ["--dataset_name", "made", "--num_prompts", 9, "--temperature", 1]
    run(data, *flags, out="first")
    run(data, *flags, "--batch_size", 4, out="again")
    run(data, *flags, "--seeds", 5, out="other")
    stories = {name: pq.read_table(data / name / "stories.parquet") for name in ("first", "again", "other")}
    assert stories["first"] == stories["again"]
    assert stories["first"]["story"] != stories["other"]["story"]
    csv = [(data / name / "constraint_scores.csv").read_bytes() for name in ("first", "again", "other")]
    assert csv[0] == csv[1] != csv[2]


def test_replicates_have_a_row_each_and_one_for_their_arm(data):
    rows = run(data, "--dataset_name", "made", "--num_prompts", 8, model="model other", out="arm")
    length = [row for row in rows if row["metric"] == "length" and row["slice"] == "all" and row["judged"] == WRITTEN]
    first, second, arm = length
    assert [first["seed"], second["seed"]] == [0, 1]
    assert arm["row"] == "arm"
    assert arm["models"] == 2
    assert arm["estimate"] == pytest.approx((first["estimate"] + second["estimate"]) / 2)
    assert arm["lower"] < min(first["estimate"], second["estimate"])


def test_classifiers_judge_where_they_are_asked_to(data):
    """The table names what they are worth; the corpus is too small for them to be worth much."""
    run(data, "--dataset_name", "made", "--num_prompts", 4, "--feature_judge", "classifier", "--judge_corpus", "tiny")
    records = pd.read_csv(data / "out/constraint_scores.csv").query("judged == @RECORDS and metric == 'has_Twist'")
    assert len(records)
    assert 0.5 < pd.read_csv(data / "out/judge.csv")["estimate"].mean() <= 1
    run(data, "--dataset_name", "made", "--num_prompts", 4)
    assert not (data / "out/judge.csv").exists()  # of an earlier run with other flags


def test_pairs_and_conversations_are_asked_in_their_layouts(data):
    tokenizer = load_tokenizer(data / "model")
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    model = tiny_model("llama", vocab_size=400, positions=512)
    pairs, talks = (pair_tasks(name, data / "data", "test", 3) for name in ("made", "chat"))
    assert [(t.prompt, t.words, t.story) for t in pairs] == [(t.prompt, t.words, t.story) for t in talks]
    assert task_prompts(Storyteller("m", model, tokenizer, "instruct"), pairs) == instruct_prompts(
        tokenizer, [task.prompt for task in pairs]
    )
    chat = Storyteller("m", model, tokenizer, "chat")
    (first, *_), (plain, *_) = task_prompts(chat, talks), task_prompts(chat, pairs)
    assert "Be kind." in tokenizer.decode(first)
    assert "Be kind." not in tokenizer.decode(plain)


@pytest.mark.parametrize("name", ["prompts.yaml", "prompts.txt"])
def test_prompts_of_a_file_are_scored_by_length_and_end(name, data, tmp_path):
    text = "- One day, a cat\n- A dog\n" if name.endswith("yaml") else "One day, a cat\n\nA dog\n"
    (tmp_path / name).write_text(text)
    rows = run(data, "--prompts", tmp_path / name, "--mode", "completion", out=f"file-{name}")
    judges = {"distinct_2", "copied_prompt"}  # the stories are too short to repeat four words
    assert {row["metric"] for row in rows if not row["metric"].startswith("has_")} == {"length", "ended", *judges}
    assert {row["judged"] for row in rows} == {WRITTEN}
    written = pq.read_table(data / f"file-{name}" / "stories.parquet").to_pylist()
    assert [story["prompt"] for story in written] == ["One day, a cat", "A dog"]


def test_the_published_prompts_are_read(shared_data):
    tasks = file_tasks(shared_data / "tinystories_eval_prompts/Evaluation prompts.yaml")
    assert len(tasks) == 44
    assert tasks[0].prompt.startswith("Once upon a time, there lived a bunny in a field.")
    assert len({task.record_id for task in tasks}) == 44


def test_prompts_that_are_too_long_are_left_out_and_counted(data, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("A dog\n" + "cat " * 600 + "\nOne day\n")
    rows = run(data, "--prompts", tmp_path / "prompts.txt", "--mode", "completion", out="long")
    assert found(rows, WRITTEN, "length")["n"] == 2
    assert "note: 1 of 3 prompts are left out (more than 502 tokens)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --dataset_name, a data set of pairs, or --prompts, a file"),
        (["--dataset_name", "nowhere"], "--dataset_name nowhere is not prepared in"),
        (["--dataset_name", "bare"], "bare has no column words and features; make it with"),
        (["--dataset_name", "made", "--max_new_tokens", "511"], "have room for 1; give a smaller --max_new_tokens"),
        (["--dataset_name", "made", "--seeds", "1,1"], "--seeds 1,1: give distinct whole numbers below 2^32"),
        (["--dataset_name", "made", "--seeds", "a"], "--seeds a: give distinct"),
        (["--dataset_name", "made", "--temperature", "0", "--seeds", "0,1"], "give one number to --seeds"),
        (["--dataset_name", "made", "--feature_judge", "classifier"], "classifier needs --judge_corpus"),
        (["--dataset_name", "made", "--judge_corpus", "nowhere"], "--judge_corpus nowhere is not prepared in"),
        (["--dataset_name", "made", "--coverage", "nowhere"], "--coverage nowhere"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt cannot be read"),
        (["--prompts", "nowhere.yaml"], "--prompts nowhere.yaml: it cannot be read"),
        (["--dataset_name", "made", "--num_prompts", "0"], "--num_prompts 0 must be"),
    ],
)
def test_what_cannot_be_scored_is_one_line_and_writes_nothing(flags, message, data, capsys):
    with pytest.raises(SystemExit) as left:
        run(data, *flags, out="never")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert [line for line in error.splitlines() if line][-1].startswith("error: ")
    assert not (data / "never").exists()


def test_an_empty_or_wrong_file_of_prompts_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "map.yaml").write_text("a: b\n")
    with pytest.raises(UsageError, match="has no prompt; write one per line"):
        file_tasks(tmp_path / "empty.txt")
    with pytest.raises(UsageError, match="is not a list of texts"):
        file_tasks(tmp_path / "map.yaml")
