"""Which runs are one arm, and how many variables differ between arms."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from lm_trials.console import UsageError
from lm_trials.trials.compare import compare_runs
from lm_trials.trials.differences import find_variables
from lm_trials.trials.runs import count_parameters, group_arms, read_runs


def variables(*runs):
    return {variable.name: list(variable.fields) for variable in compare_runs(runs).variables}


def test_seeds_and_logistics_make_no_other_arm(make_run):
    runs = [make_run("a", 1), make_run("b", 2, logistics={"logging_steps": 5}), make_run("c", 2, data_seed=7)]
    comparison = compare_runs(runs)
    assert len(comparison.arms) == 1
    assert comparison.variables == ()
    assert comparison.logistics == ("logging_steps",)
    assert comparison.verdict.startswith("no variable differs")


def test_one_variable_is_named_with_each_arms_value(make_run):
    runs = [make_run("a1", 1), make_run("b1", 1, {"learning_rate": 0.001}), make_run("a2", 2)]
    comparison = compare_runs(runs)
    assert [[run.name for run in arm.runs] for arm in comparison.arms] == [["runs/a1", "runs/a2"], ["runs/b1"]]
    assert comparison.verdict == "exactly one variable differs: learning_rate"
    assert comparison.described()["variables"] == [
        {"name": "learning_rate", "fields": {"learning_rate": {"A": 0.004, "B": 0.001}}}
    ]


def test_two_variables_are_two(make_run):
    runs = [make_run("a"), make_run("b", change={"learning_rate": 0.001, "weight_decay": 0.1})]
    assert variables(*runs) == {"learning_rate": ["learning_rate"], "weight_decay": ["weight_decay"]}
    assert compare_runs(runs).verdict.startswith("2 variables differ")


def test_three_values_of_one_variable_are_one_variable(make_run):
    runs = [make_run(str(rate), change={"learning_rate": rate}) for rate in (0.1, 0.2, 0.3)]
    comparison = compare_runs(runs)
    assert len(comparison.arms) == 3
    assert list(variables(*runs)) == ["learning_rate"]


OTHER_DATA = {
    "dataset_name": "other",
    "data.corpus": "other",
    "data.content": "c1",
    "data.stories.train": 200,
    "data.tokens.train": 8000,
}
OTHER_TOKENIZER = {"vocab_size": 500, "data.tokenizer_hash": "t1", "data.tokens.train": 8000, "model.vocab_size": 500}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (OTHER_DATA, ["dataset_name"]),
        ({"data.content": "c1", "data.tokens.train": 8000}, ["data"]),
        ({"data.protocol.filtering": ["features=Twist"], "dataset_name": "filter"}, ["dataset_name"]),
        (OTHER_TOKENIZER, ["vocab_size"]),
        (OTHER_DATA | OTHER_TOKENIZER, ["dataset_name", "vocab_size"]),
        ({"config_overrides": "hidden_size=64", "model.hidden_size": 64, "model.head_dim": 16}, ["config_overrides"]),
        ({"model.hidden_size": 64}, ["model"]),
        ({"dropout": 0.1, "model.attention_dropout": 0.1}, ["dropout"]),
        (
            {"dropout": 0.1, "model.resid_dropout": 0.1, "config_overrides": "hidden_size=8", "model.hidden_size": 8},
            ["config_overrides", "dropout"],
        ),
        ({"model_type": "gpt2", "model.model_type": "gpt2", "model.resid_pdrop": 0.1}, ["model_type"]),
        ({"block_size": 64, "num_tokens": 25600, "model.max_position_embeddings": 64}, ["block_size"]),
        ({"max_steps": 200, "num_tokens": 25600}, ["max_steps"]),
        ({"max_steps": 200, "total_train_batch_size": 2}, ["max_steps", "total_train_batch_size"]),
        ({"append_eos": True, "data.append_eos": True, "data.tokens.train": 9300}, ["append_eos"]),
        ({"code_revision": "bbbb"}, ["code_revision"]),
        ({"order_by": "words", "order": "ascending", "data.metrics.words.values": "m0"}, ["order_by, order"]),
        ({"order_by": "words", "shuffle_buffer_size": 1}, ["order_by, shuffle_buffer_size"]),
        ({"keep": "words>9", "data.metrics.words.values": "m0"}, ["keep"]),
        ({"keep": "words>9", "order_schedule": "[]", "data.metrics.words.values": "m0"}, ["keep", "order_schedule"]),
        ({"data.content": "c1", "data.metrics.words.values": "m0"}, ["data"]),
        ({"data.metrics.words.values": "m0"}, ["metrics"]),
        ({"bf16": True, "mixed_precision": "bf16"}, ["bf16"]),
        (
            {"initial_model.name_or_path": "x", "initial_model.weights_sha256": "w", "config_overrides": None},
            ["model_name_or_path"],
        ),
    ],
)  # fmt: skip
def test_fields_that_follow_are_listed_under_what_was_changed(make_run, change, expected):
    runs = [make_run("a"), make_run("b", change=change)]
    found = variables(*runs)
    assert list(found) == expected
    assert {field for fields in found.values() for field in fields} >= set(change) - {"model.model_type"}


def test_flags_of_the_order_that_are_not_given_are_no_difference(make_run):
    """Runs of older versions have no such fields."""
    unset = dict.fromkeys(("order_by", "order", "order_window", "order_schedule", "keep"))
    assert variables(make_run("a"), make_run("b", 2, unset)) == {}
    assert variables(make_run("d", 3), make_run("c", change={**unset, "order": "file"})) == {"order": ["order"]}


def test_versions_count_and_transformers_note_in_the_config_does_not(make_run):
    runs = [make_run("a"), make_run("b", versions={"torch": "2.14.0"}, change={"model.transformers_version": "6"})]
    assert variables(*runs) == {"versions": ["versions.torch"]}


def test_another_name_of_the_same_thing_is_no_difference(make_run):
    names = {"dataset_name": "./data/tiny", "vocab_size": 0, "tokenizer_name": "tok", "config_overrides": None}
    comparison = compare_runs([make_run("a", 1), make_run("b", 2, names)])
    assert len(comparison.arms) == 1
    assert set(comparison.names) == set(names)
    # The control: the same names for another thing.
    assert len(compare_runs(["runs/a", make_run("c", 3, names | {"data.content": "c1"})]).arms) == 2


def fine_tuned(make_run, name, base):
    """A run that started from `base` or from a checkpoint of it, as the manifest says it."""
    run = next(place / "run.json" for place in (Path(base), Path(base).parent) if (place / "run.json").is_file())
    weights = hashlib.sha256(hashlib.sha256(Path(base, "model.safetensors").read_bytes()).digest()).hexdigest()
    described = json.loads(run.read_text())
    initial = {
        "name_or_path": base,
        "weights_sha256": weights,
        "run": {"run_name": described["run_name"], "replicate": described["replicate"]},
    }
    return make_run(name, 5, {"initial_model": initial})


def test_fine_tunings_from_replicates_of_one_pretraining_are_one_arm(make_run):
    same = [fine_tuned(make_run, f"fine{seed}", make_run(f"base{seed}", seed)) for seed in (1, 2)]
    other = fine_tuned(make_run, "fine3", make_run("base3", 3, {"learning_rate": 0.1}))
    arms = group_arms(read_runs([*same, other]))
    assert [len(arm.runs) for arm in arms] == [2, 1]
    assert list(variables(*same, other)) == ["model_name_or_path"]
    # Weights that are no longer those it started from tell nothing of their recipe.
    Path("runs/base2/run.json").unlink()
    assert [len(arm.runs) for arm in group_arms(read_runs([*same, other]))] == [1, 1, 1]


def test_fine_tunings_from_one_checkpoint_of_each_replicate_are_one_arm(make_run):
    tuned = []
    for seed in (1, 2):
        base = Path(make_run(f"base{seed}", seed))
        tuned.append(fine_tuned(make_run, f"fine{seed}", str(base)))
        for step in (50, 60):
            (base / f"checkpoint-{step}").mkdir()
            shutil.copy(base / "model.safetensors", base / f"checkpoint-{step}")
            tuned.append(fine_tuned(make_run, f"fine{seed}-{step}", str(base / f"checkpoint-{step}")))
    arms = [([run.name for run in arm.runs], arm.roots) for arm in group_arms(read_runs(tuned))]
    assert arms == [([f"runs/fine1{of}", f"runs/fine2{of}"], (1, 2)) for of in ("", "-50", "-60")]


def test_bases_are_found_beside_their_fine_tunings_after_a_move(make_run, monkeypatch):
    tuned = []
    for seed in (1, 2):
        base = Path(make_run(f"base{seed}", seed))
        (base / "checkpoint-50").mkdir()
        shutil.copy(base / "model.safetensors", base / "checkpoint-50")
        tuned += [fine_tuned(make_run, f"fine{seed}{of}", str(base / of)) for of in ("", "checkpoint-50")]
    monkeypatch.chdir("runs")
    names = [Path(name).name for name in tuned]
    arms = [tuple(run.name for run in arm.runs) for arm in group_arms(read_runs(names))]
    assert arms == [("fine1", "fine2"), ("fine1checkpoint-50", "fine2checkpoint-50")]
    Path("base2", "model.safetensors").write_bytes(b"another model of this name")
    assert [len(arm.runs) for arm in group_arms(read_runs(names[::2]))] == [1, 1]


def test_parameters_are_counted_from_the_headers_of_all_shards(make_run):
    folder = Path(make_run("a"))
    assert count_parameters(folder) == 400 * 32 + 7
    shard = folder / "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(shard)
    index = {"weight_map": {"wte": shard.name, "h": shard.name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert count_parameters(folder) == 400 * 32 + 7
    shard.unlink()
    assert count_parameters(folder) is None


def test_a_run_that_did_not_finish_is_seen(make_run):
    whole, killed = read_runs([make_run("a"), make_run("b", 2, steps=40)])
    assert whole.finished
    assert not killed.finished


@pytest.mark.parametrize(
    ("names", "baseline", "text"),
    [
        ([], None, "at least two run folders"),
        (["runs/a"], None, "runs/a: a comparison needs at least two"),
        (["runs/a", "runs/../runs/a/"], None, "is named twice"),
        (["runs/a", "nowhere"], None, "nowhere holds no run.json; name a run's folder"),
        (["runs/a", "runs/a/checkpoint-5"], None, "runs/a has one"),
        (["runs/a", "runs/b"], "runs/c", "--baseline runs/c is none of the runs"),
        (["runs/a", "runs/copy"], None, "so it is not a replicate"),
        (["runs/a", "broken"], None, "cannot be read as JSON"),
        (["runs/a", "foreign"], None, "has no outcome and replicate fields"),
    ],
)
def test_what_is_no_comparison_is_refused_in_one_line(make_run, names, baseline, text):
    make_run("a"), make_run("b", 2), make_run("copy", 1)
    for name, content in (("broken", "{"), ("foreign", "{}")):
        Path(name).mkdir()
        Path(name, "run.json").write_text(content)
    Path("runs/a/checkpoint-5").mkdir()
    with pytest.raises(UsageError, match=text):
        compare_runs(names, baseline)


def test_the_baseline_is_the_first_arm(make_run):
    runs = [make_run("a"), make_run("b", change={"learning_rate": 0.001})]
    assert [arm.runs[0].name for arm in compare_runs(runs, "runs/b").arms] == ["runs/b", "runs/a"]
    assert [arm.runs[0].name for arm in compare_runs(runs).arms] == ["runs/a", "runs/b"]


# Arms of mixtures: another part is one variable, another share is one variable, both parts the same is none.


SHARED = {"data.tokenizer_hash": "t", "data_mix_unit": "tokens", "dataset_name": "abstracts"}


def corpus(content, prefix="data"):
    return {f"{prefix}.content": content, f"{prefix}.stories.train": len(content), f"{prefix}.tokens.train": 100}


def single(name):
    return {**SHARED, **corpus(name * 3), "dataset_config_name": name, "data_mix": None}


def mixture(mix=".5,.5", second="south"):
    parts = {**corpus("north" * 3, "data.parts.north"), **corpus(second * 3, f"data.parts.{second}")}
    return {**SHARED, **parts, "dataset_config_name": f"north+{second}", "data_mix": mix}


def names(*outcomes):
    return [variable.name for variable in find_variables(outcomes)]


def test_one_corpus_another_and_both_differ_in_the_data_alone():
    assert names(single("north"), single("south"), mixture()) == ["dataset_config_name"]
    (variable,) = find_variables([single("north"), mixture()])
    assert {"data_mix", "data.content", "data.parts.north.content"} <= set(variable.fields)


def test_another_share_of_the_same_parts_is_a_variable_of_its_own():
    assert names(mixture(), mixture(".3,.7")) == ["data_mix"]
    assert names(mixture(), mixture()) == []


def test_another_tokenizer_or_rate_beside_it_is_counted():
    other = {**mixture(), "data.tokenizer_hash": "u", "learning_rate": 2.0}
    assert len(names({**single("north"), "learning_rate": 1.0}, other)) == 3
