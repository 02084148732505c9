"""Matrices: which cells are in-domain, means over data sets, what is comparable, and the files and the picture."""

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_evaluations import results_in, table_in, write_stories
from tiny_models import tiny_model, tiny_tokenizer

import eval_checkpoint
import prepare_tinystories
from lm_trials.data.datasets import RawSource, Selection, dataset_of
from lm_trials.evaluation.checkpoints import Candidate
from lm_trials.evaluation.domains import TrainingData, in_domain, training_data
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.losses import Document, StoryLoss
from lm_trials.evaluation.matrix import domain_means, evaluation_matrix, show_matrix
from lm_trials.evaluation.results import STORY_TABLE, EvaluationResult, StoryTable
from lm_trials.evaluation.summary import LossSummary
from lm_trials.models.reference import ModelReference
from lm_trials.reporting.figures import matrix_figure
from lm_trials.stories.corpora import read_manifest
from lm_trials.stories.sources import Source, open_source

SHARED = {"estimate", "lower", "upper", "n", "unit"}


def stories(prefix, count, nats, seed=0):
    """Scored stories of 1 to 40 tokens whose loss is about `nats` per token."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        tokens = int(generator.integers(1, 40))
        document = Document(f"{prefix}{number}", np.zeros(tokens + 1, dtype=int), 3 * tokens, ("all",))
        found.append(StoryLoss(document, float(tokens * generator.gamma(4, nats / 4)), tokens, tokens // 2))
    return found


def write_table(folder, scored):
    """The file that an evaluation leaves of its stories."""
    with StoryTable(folder / STORY_TABLE) as table:
        for story in scored:
            table.add(story)
    return folder / STORY_TABLE


def summary_of(scored):
    summary = LossSummary()
    for story in scored:
        summary.add(story)
    return summary


def loss_of(scored):
    return sum(s.nats for s in scored) / sum(s.tokens for s in scored)


# Means over data sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three sets of different stories and sizes, and a fourth with the stories of the first."""
    scored = {"a": stories("a", 60, 1.0), "b": stories("b", 200, 2.0, 1), "c": stories("c", 40, 4.0, 2)}
    scored["again"] = scored["a"]
    folder = tmp_path_factory.mktemp("sets")
    return scored, {name: write_table(folder / name, found) for name, found in scored.items()}


def test_a_mean_counts_each_set_once_and_its_interval_is_that_of_drawing_within_each(sets):
    scored, tables = sets
    (row,) = domain_means({name: tables[name] for name in "abc"}, dict.fromkeys("abc", "no"), "loss")
    expected = np.mean([loss_of(scored[name]) for name in "abc"])
    pooled = loss_of([story for name in "abc" for story in scored[name]])
    assert row["estimate"] == pytest.approx(expected, rel=1e-12)
    assert abs(row["estimate"] - pooled) > 0.1  # the neighbour: the mean over all stories is another number
    assert (row["in_domain"], row["datasets"], row["n"], row["unit"]) == ("no", ["a", "b", "c"], 300, "nats per token")
    generator = np.random.default_rng(5)
    means_R, errors_R, error = np.zeros(4000), np.zeros(4000), 0.0
    for name in "abc":
        nats_N, tokens_N = (np.array([getattr(s, key) for s in scored[name]], float) for key in ("nats", "tokens"))
        drawn_RN = generator.integers(len(nats_N), size=(4000, len(nats_N)))
        nats_RN, tokens_RN = nats_N[drawn_RN], tokens_N[drawn_RN]
        loss_R = nats_RN.sum(axis=1) / tokens_RN.sum(axis=1)
        rest_RN = nats_RN - loss_R[:, None] * tokens_RN
        means_R += loss_R / 3
        errors_R += (rest_RN**2).sum(axis=1) / tokens_RN.sum(axis=1) ** 2 / 9
        error += ((nats_N - loss_of(scored[name]) * tokens_N) ** 2).sum() / tokens_N.sum() ** 2 / 9
    high, low = np.quantile((means_R - expected) / np.sqrt(errors_R), [0.975, 0.025])
    lower, upper = expected - high * np.sqrt(error), expected - low * np.sqrt(error)
    assert [row["lower"], row["upper"]] == pytest.approx([lower, upper], abs=0.12 * (upper - lower))


def test_of_one_set_the_mean_is_the_cell_to_the_last_bit(sets):
    scored, tables = sets
    row, _ = domain_means({"b": tables["b"], "a": tables["a"]}, {"b": "yes", "a": "no"}, "loss", seed=0)
    cell = summary_of(scored["b"]).estimates()["loss"].row()
    assert {key: row[key] for key in SHARED} == cell
    (other,) = domain_means({"b": tables["b"]}, {"b": "yes"}, "loss", seed=1)
    assert (other["estimate"], other["lower"] == row["lower"]) == (row["estimate"], False)


def test_stories_that_two_sets_share_are_drawn_at_once(sets):
    """Two equal sets tell no more than one; two sets of different stories do."""
    _, tables = sets
    one, equal, different = (
        domain_means({name: tables[name] for name in names}, dict.fromkeys(names, "yes"), "loss")[0]
        for names in (["a"], ["a", "again"], ["a", "b"])
    )
    assert {key: equal[key] for key in SHARED} == pytest.approx({key: one[key] for key in SHARED})
    assert equal["n"] == 60
    widths = [row["upper"] - row["lower"] for row in (one, different)]
    assert widths[1] < 0.9 * widths[0]


def test_stories_without_a_target_are_in_no_mean(tmp_path, sets):
    scored, _ = sets
    empty = StoryLoss(Document("empty", np.zeros(1, dtype=int), 1, ("all",)), 0.0, 0, 0)
    path = write_table(tmp_path / "a", [empty, *scored["a"]])
    (row,) = domain_means({"a": path}, {"a": "yes"}, "bits_per_byte")
    assert {key: row[key] for key in SHARED} == summary_of(scored["a"]).estimates()["bits_per_byte"].row()


def test_a_mean_with_a_set_of_few_stories_has_no_interval(tmp_path, sets):
    """A story alone is the same in every resample, and the mean would seem surer than it is."""
    scored, tables = sets
    single = write_table(tmp_path / "single", scored["b"][:1])
    (row,) = domain_means({"a": tables["a"], "single": single}, dict.fromkeys(("a", "single"), "no"), "loss")
    assert row["estimate"] == pytest.approx((loss_of(scored["a"]) + loss_of(scored["b"][:1])) / 2)
    assert np.isnan([row["lower"], row["upper"]]).all()
    for count in (9, 10):
        few = write_table(tmp_path / f"{count}", scored["b"][:count])
        (row,) = domain_means({"a": tables["a"], "few": few}, dict.fromkeys(("a", "few"), "no"), "loss")
        assert (row["lower"] < row["estimate"] < row["upper"]) is (count == 10)


def test_sets_that_are_neither_in_nor_out_are_in_no_mean(sets):
    _, tables = sets
    domains = {"a": "yes", "b": "no", "c": "unknown", "again": "partly"}
    rows = domain_means(tables, domains, "loss")
    assert [(row["in_domain"], row["datasets"]) for row in rows] == [("yes", ["a"]), ("no", ["b"])]
    assert domain_means(tables, dict.fromkeys(tables, "unknown"), "loss") == []


# The table


@pytest.fixture(scope="module")
def evaluated(sets, tmp_path_factory):
    """Make what an evaluation of models on the sets a, b, c leaves; settings of a model may differ."""
    scored, tables = sets
    rows_of = {name: summary_of(found).rows() for name, found in scored.items()}

    def make(models, names, differing=None):
        candidates, results = [], []
        for model in models:
            run = {"outcome": {"data": {"content": model}}, "replicate": {"seed": 3}}
            candidates.append(Candidate(ModelReference(model), None, 64, False, 3, run))
            for name in names:
                same = {"tokenizer_hash": "t", "append_eos": False, "block_size": 64}
                shared = {"model": model, "step": None, "seed": 3, "dataset": name}
                rows = [{**shared, **row} for row in rows_of[name]]
                settings_of = same | (differing or {}).get(model, {})
                results.append(EvaluationResult(model, name, tables[name].parent, {}, rows, settings_of))
        datasets = [Selection(name, iter, name, parts=(frozenset({name}),)) for name in names]
        return results, candidates, datasets, EvaluationArguments()

    return make


@settings(max_examples=6, deadline=None)
@given(models=st.permutations(["a", "b", "x"]), names=st.permutations(["a", "b", "c"]))
def test_the_order_of_models_and_data_sets_is_irrelevant_to_every_number(evaluated, models, names):
    given_order, sorted_order = (
        evaluation_matrix(*evaluated(*order)) for order in ((models, names), (sorted(models), sorted(names)))
    )
    for rows in ("rows", "means"):
        first, second = (
            sorted(json.dumps(row, sort_keys=True) for row in getattr(matrix, rows))
            for matrix in (given_order, sorted_order)
        )
        assert first == second
    assert [row["dataset"] for row in given_order.cells[:3]] == list(names)  # while the rows are in the order given


def test_a_cell_is_the_number_of_its_evaluation(evaluated, sets):
    scored, _ = sets
    matrix = evaluation_matrix(*evaluated(["a", "x"], ["a", "b"]))
    assert matrix.metric == "loss"
    assert [(cell["model"], cell["dataset"], cell["in_domain"]) for cell in matrix.cells] == [
        ("a", "a", "yes"), ("a", "b", "no"), ("x", "a", "no"), ("x", "b", "no"),
    ]  # fmt: skip
    for cell in matrix.cells:
        assert cell["estimate"] == pytest.approx(loss_of(scored[cell["dataset"]]))
    assert len({cell["estimate"] for cell in matrix.cells}) == 2
    assert {row["metric"] for row in matrix.rows} == {"loss", "perplexity", "accuracy", "bits_per_byte"}
    assert {(m["model"], m["in_domain"]): m["datasets"] for m in matrix.means} == {
        ("a", "yes"): ["a"], ("a", "no"): ["b"], ("x", "no"): ["a", "b"],
    }  # fmt: skip


def test_different_tokenizers_are_compared_in_bits_per_byte(evaluated, capsys):
    same = evaluation_matrix(*evaluated(["a", "x"], ["a", "b"]))
    other = evaluation_matrix(*evaluated(["a", "x"], ["a", "b"], {"x": {"tokenizer_hash": "u"}}))
    assert (same.metric, other.metric) == ("loss", "bits_per_byte")
    assert {cell["unit"] for cell in other.cells} | {mean["unit"] for mean in other.means} == {"bits per byte"}
    reason = "nats per token of different tokenizers are not comparable"
    show_matrix(same, Path("out"), {"a": "a.jsonl", "b": "b"})
    shown = " ".join(capsys.readouterr().out.split())
    assert "model a.jsonl b" in shown  # the file, not a count called `a`
    assert reason not in shown
    show_matrix(other, Path("out"), {"a": "a", "b": "b"})
    shown = " ".join(capsys.readouterr().out.split())
    assert reason in shown
    assert "matrix, bits per byte" in shown


def test_what_else_makes_rows_incomparable_is_said(evaluated):
    differing = {"x": {"append_eos": True, "block_size": 32}}
    notes = " ".join(evaluation_matrix(*evaluated(["a", "x"], ["a", "b"], differing)).notes)
    assert "EOS after each story is scored for some models only" in notes
    assert "windows differ (32, 64 tokens); to compare, set --block_size 32" in notes
    plain = " ".join(evaluation_matrix(*evaluated(["a", "x"], ["a", "b"])).notes)
    assert "EOS" not in plain
    assert "windows" not in plain


def test_runs_that_differ_in_seeds_alone_are_said_to_be_so(evaluated):
    results, candidates, *rest = evaluated(["a", "x"], ["a", "b"])
    assert "over seeds" not in " ".join(evaluation_matrix(results, candidates, *rest).notes)
    for seed, candidate in enumerate(candidates):
        candidate.run.update(outcome={"data": {"content": "a"}}, replicate={"seed": seed})
    notes = " ".join(evaluation_matrix(results, candidates, *rest).notes)
    assert "for intervals over seeds: lm-trials compare" in notes
    candidates[1].run["replicate"] = candidates[0].run["replicate"]  # the same run twice is no replicate
    assert "over seeds" not in " ".join(evaluation_matrix(results, candidates, *rest).notes)


# What a model was trained on


def a_run(**outcome):
    return {"run_name": "r", "outcome": outcome, "replicate": {"seed": 1}}


def opened(name, data, **options):
    args = EvaluationArguments(data_cache_dir=str(data), **options)
    return dataset_of(args, str(name)).select(args.dataset_split).parts


@pytest.fixture(scope="module")
def corpora(tiny_data, tmp_path_factory):
    """A data folder with the corpus `tiny`, a set of it, and a corpus `mine` made of the file stories.jsonl."""
    folder = tmp_path_factory.mktemp("corpora")
    for path in tiny_data.iterdir():
        (folder / path.name).symlink_to(path)
    write_stories(folder / "stories.jsonl", 400)
    data = ["--data_cache_dir", str(folder)]
    prepare_tinystories.main(["ingest", "--source", str(folder / "stories.jsonl"), "--corpus", "mine", *data])
    protocol = ["--corpus", "mine", "--filtering", "length=1", "--dataset_name", "a-set"]
    prepare_tinystories.main(["pretokenize", *protocol, "--tokenizer_name", str(tiny_data / "tok400"), *data])
    return folder


def described(corpus, folder, **more):
    return {"corpus": corpus, "content": read_manifest(folder / corpus)["content"], **more}


def test_a_run_is_in_the_domain_of_its_corpus_and_of_no_other(corpora):
    trained = training_data(a_run(data=described("tiny", corpora)), corpora)
    assert in_domain(trained, opened("tiny", corpora)) == "yes"
    assert in_domain(trained, opened("tiny", corpora, dataset_split="test")) == "yes"
    assert in_domain(trained, opened("mine", corpora)) == "no"
    assert in_domain(training_data(None, corpora), opened("tiny", corpora)) == "unknown"
    assert in_domain(training_data(a_run(), corpora), opened("tiny", corpora)) == "unknown"


def test_the_file_that_a_corpus_was_made_of_is_its_domain(corpora, tmp_path):
    trained = training_data(a_run(data=described("mine", corpora)), corpora)
    assert in_domain(trained, opened(corpora / "stories.jsonl", corpora)) == "yes"
    assert in_domain(trained, opened(corpora / "stories.jsonl", corpora, dataset_split="validation")) == "yes"
    write_stories(tmp_path / "stories.jsonl", 400, seed=1)
    assert in_domain(trained, opened(tmp_path / "stories.jsonl", corpora)) == "no"
    streamed = training_data(a_run(data={"source": open_source(str(corpora / "stories.jsonl")).origin()}), corpora)
    assert [in_domain(streamed, opened(name, corpora)) for name in ("mine", "tiny")] == ["yes", "no"]
    changed = described("mine", corpora) | {"content": "0" * 16}
    assert in_domain(training_data(a_run(data=changed), corpora), opened(corpora / "stories.jsonl", corpora)) == "no"


def test_a_hub_data_set_is_its_name_and_configuration(corpora):
    streamed = {"source": {"reference": "o/pile", "fingerprint": "f", "read_as": "g", "dataset_config_name": "pubmed"}}
    trained = training_data(a_run(data=streamed), corpora)
    sources = [Source(name, kind="hub", dataset_config_name=config, dataset_split="validation")
               for name, config in (("o/pile", "pubmed"), ("o/pile", "uspto"), ("o/other", "pubmed"))]  # fmt: skip
    assert [in_domain(trained, (RawSource.known_as(source),)) for source in sources] == ["yes", "no", "no"]
    as_corpus = training_data(
        a_run(data={"fingerprint": replace(sources[0], dataset_split=None).fingerprint()}), corpora
    )
    assert [in_domain(as_corpus, (RawSource.known_as(source),)) for source in sources] == ["yes", "no", "no"]


def test_a_set_is_its_corpus_and_its_protocol(corpora):
    protocol = read_manifest(corpora / "a-set")["protocol"]
    on_set, on_corpus, on_other = (
        training_data(a_run(data=described("mine", corpora, **more)), corpora)
        for more in ({"protocol": protocol}, {}, {"protocol": protocol | {"seed": 99}})
    )
    assert [in_domain(trained, opened("a-set", corpora)) for trained in (on_set, on_corpus, on_other)] == [
        "yes", "no", "no",
    ]  # fmt: skip
    assert in_domain(on_set, opened("mine", corpora)) == "no"


def test_each_part_of_a_mixture_counts(corpora):
    mixture = {"parts": [described("tiny", corpora), described("mine", corpora)], "weights": [0.5, 0.5]}
    trained = training_data(a_run(data=mixture), corpora)
    assert [in_domain(trained, opened(name, corpora)) for name in ("tiny", "mine", "a-set")] == ["yes", "yes", "no"]
    (tiny,), (a_set,) = opened("tiny", corpora), opened("a-set", corpora)
    assert in_domain(trained, (tiny, a_set)) == "partly"
    assert in_domain(trained, (tiny, tiny)) == "yes"


def test_what_a_run_started_from_was_trained_on_counts_too(corpora, tmp_path):
    before = a_run(data=described("tiny", corpora)) | {"run_name": "base"}
    (tmp_path / "run.json").write_text(json.dumps(before))
    initial = {"name_or_path": str(tmp_path), "run": {"run_name": "base", "replicate": {"seed": 1}}}
    tuned = a_run(data=described("mine", corpora), initial_model=initial)
    names = ("mine", "tiny", "a-set")
    trained = training_data(tuned, corpora)
    assert [in_domain(trained, opened(name, corpora)) for name in names] == ["yes", "yes", "no"]
    (tmp_path / "run.json").write_text(json.dumps(before | {"replicate": {"seed": 2}}))  # another run lies there now
    trained = training_data(tuned, corpora)
    assert [in_domain(trained, opened(name, corpora)) for name in names] == ["yes", "unknown", "unknown"]
    circular = a_run(initial_model=initial | {"run": {"run_name": "r", "replicate": {"seed": 1}}})
    (tmp_path / "run.json").write_text(json.dumps(circular))
    assert training_data(circular, corpora) == TrainingData(frozenset(), complete=False)


# From the command line


@pytest.fixture
def here(corpora, tmp_path, monkeypatch):
    """A folder with the corpora as `data`, a run on `tiny` of two seeds, and a model without run.json."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(corpora)
    for seed, name in enumerate(("runs/one", "runs/two", "plain")):
        tiny_model("llama", vocab_size=400, positions=64, seed=seed).save_pretrained(name)
        tiny_tokenizer(330).save_pretrained(name)
        if name != "plain":
            run = a_run(data=described("tiny", corpora)) | {"replicate": {"seed": seed}}
            Path(name, "run.json").write_text(json.dumps(run))
    return tmp_path


def test_a_matrix_from_the_command_line(here, capsys):
    flags = ["--dataset_name", "tiny", "mine", "data/stories.jsonl", "--max_eval_samples", "4"]
    rows = eval_checkpoint.main(["--model_dir", "runs/one", "runs/two", "plain", *flags])
    matrix = here / "out/tables/matrix"
    assert sorted(path.name for path in matrix.iterdir()) == ["matrix.csv", "matrix.json", "matrix.png"]
    assert (matrix / "matrix.png").read_bytes().startswith(b"\x89PNG")
    table = table_in(matrix / "matrix.csv")
    assert SHARED | {"model", "dataset", "in_domain", "metric", "seed"} <= set(table[0])
    assert [float(row["estimate"]) for row in table] == [row["estimate"] for row in rows]
    losses = {(row["model"], row["dataset"]): row for row in table if row["metric"] == "loss"}
    assert len(losses) == 9
    assert {pair: row["in_domain"] for pair, row in losses.items()} == {
        (model, dataset): "unknown" if model == "plain" else "yes" if dataset == "tiny-validation" else "no"
        for model in ("runs/one", "runs/two", "plain")
        for dataset in ("tiny-validation", "mine-validation", "stories")
    }
    assert {row["model"]: row["seed"] for row in losses.values()} == {"runs/one": "0", "runs/two": "1", "plain": ""}
    for (model, dataset), row in losses.items():
        assert float(row["estimate"]) == results_in(here / model / "eval" / dataset)["eval_loss"]
    means = json.loads((matrix / "matrix.json").read_text())["means"]
    assert [(mean["model"], mean["in_domain"], len(mean["datasets"])) for mean in means] == [
        ("runs/one", "yes", 1), ("runs/one", "no", 2), ("runs/two", "yes", 1), ("runs/two", "no", 2),
    ]  # fmt: skip
    outside = [float(losses["runs/one", name]["estimate"]) for name in ("mine-validation", "stories")]
    assert means[1]["estimate"] == pytest.approx(np.mean(outside), rel=1e-12)
    shown = capsys.readouterr().out
    assert f"* {means[0]['estimate']:.3f}" in shown
    assert all(text in shown for text in ("in-domain mean", "out-of-domain mean", "seed 1", "lm-trials compare"))


def test_one_pair_makes_no_matrix(here):
    eval_checkpoint.main(["--model_dir", "plain", "--dataset_name", "mine", "--max_eval_samples", "3"])
    assert not (here / "out").exists()


@pytest.mark.parametrize("place", ["taken/matrix", "/proc/matrix", "m" * 256])
def test_a_matrix_folder_that_cannot_be_written_to_is_known_before_the_evaluation(here, capsys, place):
    (here / "taken").write_text("a file")
    flags = ["--dataset_name", "tiny", "mine", "--max_eval_samples", "3", "--matrix_dir", place]
    with pytest.raises(SystemExit) as left:
        eval_checkpoint.main(["--model_dir", "plain", *flags])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert f"--matrix_dir {place} cannot be written to (" in said.err
    assert len([line for line in said.err.splitlines() if line.startswith("error: ")]) == 1
    assert not (here / "plain/eval").exists()


# The picture


def cells_of(models, datasets):
    numbers = {"lower": 0.9, "upper": 1.1, "n": 30, "unit": "nats per token"}
    return [
        {"model": m, "dataset": d, "in_domain": "yes" if m == d else "no", "estimate": i + j / 10, **numbers}
        for i, m in enumerate(models)
        for j, d in enumerate(datasets)
    ]


def test_the_picture_has_each_cell_with_its_value_and_outlines_those_in_domain(tmp_path):
    long = "runs/filter-adv-Twist-specialise-Foreshadowing/checkpoint-2000"
    rows = cells_of(["a", "b", long], ["a", "b"])
    (tmp_path / "matrix.csv").write_text("")
    with (tmp_path / "matrix.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    figure = matrix_figure(table_in(tmp_path / "matrix.csv"), "a title")  # texts, as the file has them
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), figure.get_suptitle()) == ("data set", "model", "a title")
    assert bar.get_ylabel() == "nats per token"
    assert [text.get_text().splitlines() for text in axes.texts] == [
        [f"{row['estimate']:.3f}", "[0.900, 1.100]"] for row in rows
    ]
    assert [text.get_position() for text in axes.texts] == [(x, y) for y in range(3) for x in range(2)]
    assert len(axes.patches) == 2  # a on a, b on b
    assert axes.get_xticklabels()[0].get_text() == "a\nn = 30"
    label = axes.get_yticklabels()[2].get_text()
    assert label.replace("\n", "") == long
    assert max(map(len, label.splitlines())) <= 26
    figure.savefig(tmp_path / "matrix.png")
    figure.canvas.draw()
    boxes = [tick.get_window_extent() for tick in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_picture_without_a_finite_value_and_one_of_two_units():
    rows = cells_of(["a", "b"], ["c"])
    rows[0].update(estimate=float("inf"), lower=None, upper="")
    figure = matrix_figure(rows, "a title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["inf\nno interval", "1.000\n[0.900, 1.100]"]
    assert not figure.axes[0].patches
    rows[0]["unit"] = "bits per byte"
    with pytest.raises(ValueError, match=r"2 units \(bits per byte, nats per token\) in one panel"):
        matrix_figure(rows, "a title")
    with pytest.raises(ValueError, match="0 units"):
        matrix_figure([], "a title")
