"""Ordered trainings from the command line: what an update read, in the order that the metrics say; resumed the same."""

import json

import pytest
from killed_runs import Processes, outcome, stopped_after
from refusals import error_line

import sft_lora
import train_gpt2
from lm_trials.data.datasets import open_dataset
from lm_trials.metrics.tables import make_metrics, open_metrics
from lm_trials.metrics.texts import Measures
from lm_trials.training import data_order
from lm_trials.training.data_order import open_order
from lm_trials.training.flags import DataArguments, check_reading
from lm_trials.trials.compare import compare_runs

# Some six stories in each update.
QUICK = ("--max_steps", "4", "--per_device_train_batch_size", "64", "--max_eval_samples", "2")
SAVED = (*QUICK, "--save_strategy", "steps", "--save_steps", "2")


def metrics_of(name, folder, *names):
    """Measure a data set; returns for each metric its values by record id."""
    dataset = open_dataset(name, folder).as_prepared()
    make_metrics(dataset, Measures(sentiment=False))
    table = open_metrics(dataset)
    ids = table.table["record_id"].to_pylist()
    return [dict(zip(ids, table.values(metric), strict=True)) for metric in names]


@pytest.fixture(scope="module")
def measured(tiny_data):
    """The words and the grade of the training stories of `tiny`, by record id."""
    return metrics_of("tiny", tiny_data, "words", "flesch_kincaid_grade")


def read(folder, first=1):
    """The documents of a run in its order, from an update on: (record id, metrics), each once in each pass."""
    order = open_order(folder)
    parts = [part for step in range(first, order.num_steps + 1) for part in order.parts_of(step)]
    found = dict.fromkeys((part.pass_index, part.record_id, part.values) for part in parts)
    return [(name, values) for _, name, values in found]


def names(documents):
    return [name for name, _ in documents]


def variables(*folders):
    return [variable.name for variable in compare_runs([str(folder) for folder in folders]).variables]


def test_records_are_filtered_and_sorted_and_the_command_shows_their_metrics(train_flags, measured, tmp_path, capsys):
    (words, grade), run = measured, tmp_path / "run"
    kept = [name for name in words if grade[name] < 2 and words[name] >= 40]
    assert 0 < len(kept) < len(words)
    condition = "flesch_kincaid_grade<2 and words>=40"
    train_gpt2.main(train_flags("run", *QUICK, "--order_by", "words", "--order", "descending", "--keep", condition))
    assert f"by words, descending; only {condition}: {len(kept)} of {len(words)} records" in capsys.readouterr().out
    expected = sorted(kept, key=lambda name: (-words[name], name))
    found = read(run)
    assert found == [(name, (words[name], grade[name])) for name in expected[: len(found)]]
    assert len(found) > 15
    data_order.main([str(run), "--step", "1"])
    assert f"{words[expected[0]]:g}" in capsys.readouterr().out.split("flesch_kincaid_grade")[1]
    # Validation is neither filtered nor sorted: all arms are evaluated on the same stories.
    train_gpt2.main(train_flags("plain", *QUICK))
    plain = tmp_path / "plain"
    tokens = [json.loads((folder / "eval_results.json").read_text())["eval_tokens"] for folder in (run, plain)]
    assert tokens[0] == tokens[1]
    assert variables(run, plain) == ["keep", "order_by, order"]
    assert names(read(plain)) != names(found)
    # Metrics that have changed since are seen.
    described = json.loads((run / "run.json").read_text())
    assert described["outcome"]["data"]["metrics"].keys() == {"words", "flesch_kincaid_grade"}
    described["outcome"]["data"]["metrics"]["words"]["values"] = "other"
    (run / "run.json").write_text(json.dumps(described))
    assert "has changed since the training (metrics)" in error_line(capsys, data_order.main, run)


SCHEDULE = [{"updates": "1-2", "order_by": "words", "order_window": 20}, {"updates": "3-", "keep": "words<90"}]


def test_a_scheduled_run_ends_the_same_when_resumed(train_flags, measured, tmp_path, capsys):
    """With workers and accumulation too; each window is sorted; another window is another run."""
    (words, _), run, other = measured, tmp_path / "run", tmp_path / "other"
    argv = train_flags("run", *SAVED, "--order_schedule", json.dumps(SCHEDULE))
    train_gpt2.main(argv)
    straight = outcome(run)
    stopped_after(run, 2)
    halves = ("--per_device_train_batch_size", "32", "--gradient_accumulation_steps", "2")
    train_gpt2.main([*argv, "--dataloader_num_workers", "1"])
    assert outcome(run) == straight
    found = [words[name] for name in names(read(run))]
    assert found[:10] == sorted(found[:10])
    assert max(words[name] for name in names(read(run, first=3))) < 90 <= max(words.values())
    changed = json.dumps([{**SCHEDULE[0], "order_window": 5}, SCHEDULE[1]])
    said = error_line(capsys, train_gpt2.main, *argv, "--order_schedule", changed)
    assert "cannot be resumed as another run: order_schedule was" in said
    train_gpt2.main([*argv, *halves, "--order_schedule", changed, "--output_dir", str(other)])
    assert outcome(other) != straight
    assert variables(run, other) == ["order_schedule"]
    assert read(other, first=3) == read(run, first=3)
    assert read(other) != read(run)


def test_a_part_is_injected_by_a_schedule(train_flags, tiny_data, tmp_path):
    rows = [{"story": f"Number {n} is a fact. {'It is true. ' * n}"} for n in range(60)]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = ("--dataset_name", f"tiny+{tmp_path / 'facts.jsonl'}", "--validation_split_percentage", "20")
    phases = [{"updates": "1-2", "data_mix": "1,0"}, {"updates": "3", "data_mix": ".5,.5", "order_by": "tokens"}]
    train_gpt2.main(
        train_flags("run", *QUICK, *mixed, "--order_schedule", json.dumps([*phases, {**phases[0], "updates": "4-"}]))
    )
    order = open_order(tmp_path / "run")
    corpora = [{part.corpus for part in order.parts_of(step)} for step in (1, 2, 3, 4)]
    assert corpora[0] == corpora[1] == corpora[3] == {"tiny"} < corpora[2]
    facts = [part for part in order.parts_of(3) if part.corpus != "tiny"]
    assert [part.values for part in facts] == sorted(part.values for part in facts)
    assert facts[0].values < facts[-1].values


def test_an_injection_is_short_for_its_schedule(train_flags, tiny_data, tmp_path):
    """Its records are read in its updates alone, and their own loss is logged; the run is that of the schedule."""
    rows = [{"story": f"Number {n} is a fact. {'It is true. ' * n}"} for n in range(60)]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = str(tmp_path / "facts.jsonl")
    more = (*QUICK, "--validation_split_percentage", "20", "--eval_strategy", "steps", "--eval_steps", "1")
    train_gpt2.main(train_flags("run", *more, "--inject", f"{facts}@2-3:.75"))
    order = open_order(tmp_path / "run")
    tokens = [{part.corpus: 0 for part in order.parts_of(step)} for step in (1, 2, 3, 4)]
    for step, counted in enumerate(tokens, start=1):
        for part in order.parts_of(step):
            counted[part.corpus] += len(part.ids)
    (injected,) = tokens[1].keys() - {"tiny"}
    assert [counted.keys() for counted in tokens] == [{"tiny"}, {"tiny", injected}, {"tiny", injected}, {"tiny"}]
    assert tokens[1][injected] / sum(tokens[1].values()) == pytest.approx(0.75, abs=0.1)
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if f"eval_{injected}-train_loss" in row] == [1, 2, 3, 4]
    phases = [{"updates": "1", "data_mix": "1,0"}, {"updates": "2-3", "data_mix": ".25,.75"},
              {"updates": "4-", "data_mix": "1,0"}]  # fmt: skip
    written = ("--dataset_name", f"tiny+{facts}", "--order_schedule", json.dumps(phases))
    train_gpt2.main(train_flags("written", *more, *written))
    assert outcome(tmp_path / "written") == outcome(tmp_path / "run")
    alone = DataArguments(dataset_name="tiny", inject="facts@2-")
    check_reading(alone)
    assert (alone.dataset_name, alone.inject) == ("tiny+facts", None)
    assert [(phase.span, phase.data_mix) for phase in alone.phases] == [((1, 1), "1,0"), ((2, None), "0,1")]


def test_passes_of_a_schedule_may_differ_in_length(train_flags, measured, tmp_path):
    words, _ = measured
    short = sorted(words.values())[30]
    phases = [
        {"passes": "1-2", "keep": f"words<={short:g}", "order_by": "words"},
        {"passes": "3-", "keep": "words<130"},
    ]
    flags = ("--num_train_epochs", "2.5", "--order_schedule", json.dumps(phases), "--max_eval_samples", "2")
    train_gpt2.main(train_flags("run", "--max_steps", "-1", "--per_device_train_batch_size", "64", *flags))
    order = open_order(tmp_path / "run")
    passes = [part.pass_index for step in range(1, order.num_steps + 1) for part in order.parts_of(step)]
    assert set(passes) == {0, 1, 2}
    first = {part.record_id for step in (1, 2) for part in order.parts_of(step) if part.pass_index == 0}
    assert first <= {name for name in words if words[name] <= short}


def schedule(*phases, **more):
    return [
        "--order_schedule",
        json.dumps(phases),
        *(word for key, value in more.items() for word in (f"--{key}", value)),
    ]


WRONG = [
    (["--order_by", "wrods"], "--order_by wrods: tiny has no such metric; did you mean words?"),
    (["--keep", "wrods>1"], "--keep wrods: tiny has no such metric; did you mean words?"),
    (schedule({"updates": "1-", "order_by": "wrods"}), "--order_schedule wrods: tiny has no such metric"),
    (["--keep", "words>9e9"], "--keep words>9e9 keeps none of the 391 records of tiny; words is "),
    (["--keep", "words>90 and words<80"], "keeps none of the 391 records"),
    (["--keep", "tokens<1"], "--keep tokens<1 keeps none of the 391 records of tiny; tokens is "),
    (schedule({"updates": "1-", "keep": "words<0"}), "--order_schedule: phase 1: keep words<0 keeps none"),
    (schedule({"updates": "1-", "data_mix": "1,0"}), "--order_schedule: phase 1: data_mix: tiny is one"),
    (schedule({"updates": "1-2"}), "its last phase ends at 2, and the updates of the run end at 4"),
    (schedule({"updates": "1-"}, max_steps="-1"), "give their number with --max_steps"),
    (["--inject", "facts"], "--inject facts is not NAME@FIRST-LAST or NAME@FIRST-LAST:SHARE; give, for example, facts"),
    (["--inject", "facts@2-3:1.5"], "--inject facts@2-3:1.5 is not NAME@FIRST-LAST"),
    (["--inject", "facts@3-2"], "--inject facts@3-2: updates 3-2 is no range"),
    (["--inject", "facts@2-3"], "facts is not a local path"),
    (
        ["--inject", "x@2-3", "--dataset_name", "a+b"],
        "--inject x@2-3: --dataset_name a+b is a mixture; write the phases",
    ),
    (
        ["--inject", "x@2-3", "--order", "file"],
        "--inject x@2-3 and --order cannot be combined (it is short for an --order_schedule)",
    ),
    (schedule({"passes": "1"}, {"passes": "2-"}), "its last phase begins at 2, and the passes of the run end at 1"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG)
def test_a_mistake_is_one_line(train_flags, measured, tmp_path, capsys, argv, message):
    assert message in error_line(capsys, train_gpt2.main, *train_flags("run", *argv))
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_metrics_is_told_how_to_make_them(train_flags, tmp_path, capsys):
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"story": f"Story {n}. " * 9}) + "\n" for n in range(40)))
    argv = train_flags("run", "--dataset_name", str(tmp_path / "few.jsonl"), "--validation_split_percentage", "20")
    said = error_line(capsys, train_gpt2.main, *argv, "--order_by", "words")
    assert said.startswith("error: --order_by words: ")
    assert "has no metrics; make them with: lm-trials prepare metadata --dataset_name few-" in said


def test_examples_are_filtered_and_sorted(tune_flags, tiny_pairs, tiny_data, tmp_path, capsys):
    """Too long ones are left out, so that the rows are not those of the table; resumed, it ends the same."""
    more = ("--max_length", "36", "--keep", "words<=6", "--order_by", "words", "--order", "descending")
    argv = tune_flags("run", "--max_steps", "8", "--save_strategy", "steps", "--save_steps", "4", *more)
    said = error_line(capsys, sft_lora.main, *argv)
    name = said.split(" has no metrics; make them")[0].split()[-1]
    (words,) = metrics_of(name, tiny_data, "words")
    sft_lora.main(argv)
    assert "by words, descending; only words<=6: " in capsys.readouterr().out
    straight, found = outcome(tmp_path / "run"), read(tmp_path / "run")
    assert found == sorted(found, key=lambda each: (-words[each[0]], each[0]))
    assert [values for _, values in found] == [(words[name],) for name in names(found)]
    assert {values for _, values in found} == {(6.0,)}
    stopped_after(tmp_path / "run", 4)
    sft_lora.main(argv)
    assert outcome(tmp_path / "run") == straight
    sft_lora.main([*argv, "--order", "ascending", "--output_dir", str(tmp_path / "other")])
    assert outcome(tmp_path / "other") != straight
    assert variables(tmp_path / "run", tmp_path / "other") == ["order"]
    assert {values for _, values in read(tmp_path / "other")} == {(3.0,)}


def test_a_filter_comes_before_packing_and_packed_rows_have_no_order(tune_flags, tmp_path, capsys):
    kept = ("--packing", "True", "--keep", "tokens<30", "--max_steps", "3")
    sft_lora.main(tune_flags("run", *kept))
    order = open_order(tmp_path / "run")
    rows = [part for step in (1, 2, 3) for part in order.parts_of(step)]
    assert all(part.values == (len(part.ids),) and len(part.ids) < 30 for part in rows)
    assert any(len(order.store.input_ids(number)) >= 30 for number in range(len(order.store)))
    said = error_line(capsys, sft_lora.main, *tune_flags("other", *kept, "--order_by", "tokens"))
    assert "--packing True and --order_by: packing joins examples" in said
    schedule = ("--order_schedule", '[{"passes": "1", "order": "file"}, {"passes": "2-"}]')
    assert "begins at 2, and the passes of the run end at 1" in error_line(
        capsys, sft_lora.main, *tune_flags("other", *schedule)
    )


def test_examples_as_stored_and_by_passes(tune_flags, tmp_path):
    schedule = '[{"passes": "1", "order": "file"}, {"passes": "2-"}]'
    sft_lora.main(tune_flags("run", "--max_steps", "-1", "--num_train_epochs", "2", "--order_schedule", schedule))
    order = open_order(tmp_path / "run")
    numbers = [part.document for step in range(1, order.num_steps + 1) for part in order.parts_of(step)]
    count = len(order.store)
    assert numbers[:count] == list(range(count)) != numbers[count:]
    assert len(set(numbers[count:])) == len(numbers) - count > count - 4


@pytest.mark.slow
def test_two_processes_read_the_same(train_flags, measured, tmp_path):
    def losses(name, *more, world_size=1):
        argv = train_flags(name, "--max_steps", "4", "--order_schedule", json.dumps(SCHEDULE), *more)
        Processes("train", [argv], tmp_path / f"{name}.log", world_size).finish()
        rows = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [row["loss"] for row in rows if "loss" in row]

    one = losses("one", "--per_device_train_batch_size", "64")
    two = losses("two", "--per_device_train_batch_size", "32", "--use_cpu", "True", world_size=2)
    assert two == pytest.approx(one, abs=1e-5)
    assert read(tmp_path / "two") == read(tmp_path / "one")
    assert losses("other", "--per_device_train_batch_size", "64", "--data_seed", "3") != pytest.approx(one, abs=1e-5)
