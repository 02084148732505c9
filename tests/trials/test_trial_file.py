"""Trial files: what they mean, and that each mistake is one line that names its place."""

import copy
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from trials.trial_texts import TRIAL, changed, write_trial

from lm_trials.console import UsageError
from lm_trials.trials import new
from lm_trials.trials.graph import jobs_of
from lm_trials.trials.local import LocalExecutor
from lm_trials.trials.run import distinct
from lm_trials.trials.trial_file import read_trial


def read(tmp_path, trial=TRIAL):
    return read_trial(write_trial(tmp_path / "decay.yaml", trial))


def test_a_trial_is_read(tmp_path):
    trial = read(tmp_path)
    assert trial.name == "decay"
    assert trial.seeds == (0, 1)
    assert trial.stages["pretrain"].program == "train"  # the script of a clone runs the same code
    assert trial.stages["pretrain"].varies == ("weight_decay",)
    more = trial.stages["more"]
    assert more.parents == {"plain": "plain", "decayed": "decayed"}
    assert more.flags["plain"] == more.flags["decayed"]  # which their parents tell apart
    assert trial.measures[0].words == ("evaluate", "--dataset_name", "generated")
    assert trial.measures[0].arms == (("more", "plain"), ("more", "decayed"))  # of the last stage
    (primary,) = trial.of("primary")
    assert (primary.first, primary.second, primary.margin) == (("more", "plain"), ("more", "decayed"), 0.01)
    assert primary.name == "loss on generated: plain - decayed"


def test_a_grid_makes_an_arm_of_each_point(tmp_path):
    stage = {
        "program": "train",
        "parameters": {"dataset_name": {"values": ["a", "b"]}, "learning_rate": {"value": 0.1}},
    }
    trial = read(tmp_path, {**TRIAL, "stages": {"one": stage}, "measure": None, "primary": None})
    assert dict(trial.stages["one"].flags) == {
        "a": {"dataset_name": "a", "learning_rate": 0.1},
        "b": {"dataset_name": "b", "learning_rate": 0.1},
    }


def test_arms_may_cross_and_say_what_they_follow(tmp_path):
    stages = {**TRIAL["stages"], "more": {**TRIAL["stages"]["more"], "arms": {"plain": {"after": "decayed"}}}}
    trial = read(tmp_path, {**TRIAL, "stages": stages, "primary": None})
    assert trial.stages["more"].parents == {"plain": "decayed"}


def test_several_contrasts_of_one_outcome(tmp_path):
    trial = read(tmp_path, changed("primary.contrast", ["plain - decayed", "decayed - pretrain.plain"]) | {
        "measure": [{"command": "evaluate --dataset_name generated", "arms": ["more", "pretrain"]}]
    })  # fmt: skip
    assert [contrast.second for contrast in trial.of("primary")] == [("more", "decayed"), ("pretrain", "plain")]


def test_a_fine_tuning_measures_its_completions_and_constraints_their_scores(tmp_path):
    pairs = "generated-instruct-prompt"
    tuned = {"program": "tune", "after": "pretrain", "dataset_name": pairs, "max_steps": 2}
    loss = {"measure": "loss", "dataset": f"{pairs}-completions", "contrast": "plain - decayed"}
    scores = {
        "measure": "table", "table": f"eval/constraints-{pairs}-validation-instruct/constraint_scores.csv",
        "contrast": "plain - decayed",
    }  # fmt: skip
    measure = [f"constraints --dataset_name {pairs}"]
    trial = {**changed("stages.more", tuned), "primary": loss, "secondary": [scores], "measure": measure}
    assert [contrast.second for contrast in read(tmp_path, trial).contrasts] == [("more", "decayed")] * 2
    for wrong in (
        {"primary": {**loss, "dataset": "other-completions"}},
        {"primary": {**loss, "stage": "pretrain"}},
        {"measure": [f"evaluate --dataset_name {pairs}"]},
        {"primary": {**loss, "sentences_with": "Twist"}},
    ):
        with pytest.raises(UsageError, match=r"no `measure` (evaluates|writes)"):
            read(tmp_path, {**trial, **wrong})


@pytest.mark.parametrize(("command", "written"), [("latent-city --dataset_name a", True), ("evaluate", False)])
def test_what_is_said_of_a_latent_city_is_an_outcome(tmp_path, command, written):
    scores = {"measure": "table", "table": "eval/latent_city/latent_city.csv", "contrast": "plain"}
    trial = {**TRIAL, "primary": scores, "measure": [command]}
    if written:
        assert read(tmp_path, trial).contrasts[0].second is None
    else:
        with pytest.raises(UsageError, match=r"no `measure` writes eval/latent_city/latent_city.csv for more.plain"):
            read(tmp_path, trial)


def test_the_registration_changes_with_what_matters_and_not_with_words(tmp_path):
    digest = read(tmp_path).digest
    assert read(tmp_path, {**TRIAL, "description": "more words"}).digest == digest
    assert (
        read(tmp_path, {**TRIAL, "prepare": [" ".join(TRIAL["prepare"][0].split()), *TRIAL["prepare"][1:]]}).digest
        == digest
    )
    for path, value in (
        ("primary.margin", 0.02),
        ("seeds", [0, 1, 2]),
        ("stages.pretrain.max_steps", 7),
        ("primary.contrast", "decayed - plain"),
        ("per_seed", {"city": {0: "Rome", 1: "Oslo"}}),
    ):
        assert read(tmp_path, changed(path, value)).digest != digest, path


def test_a_changed_recipe_is_another_registration(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1.0e-3\n")
    trial = changed("stages.pretrain.config", str(recipe))
    digest = read(tmp_path, trial).digest
    assert read(tmp_path, trial).digest == digest
    recipe.write_text("learning_rate: 2.0e-3\n")
    assert read(tmp_path, trial).digest != digest


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("claim", None, "claim is missing"),
        ("per_seed", {"city": {0: "Rome"}}, "per_seed.city has no value for seed 1; add one"),
        ("per_seed", {"city": "Rome"}, "per_seed.city is not a mapping"),
        ("per_seed", {"seed": {0: 1, 1: 2}}, "{seed} is the root seed itself"),
        ("seeds", None, "seeds is missing; list the root seeds"),
        ("seeds", [], "seeds is missing"),
        ("seeds", [0, 0], "seeds: 0 is given twice"),
        ("seeds", [0, -1], "seeds: -1 is not a seed"),
        ("seeds", [0, "one"], "seeds: one is not a seed"),
        ("primry", {}, "unknown key primry; did you mean primary?"),
        ("stages", None, "stages is missing"),
        ("stages.pretrain.program", "nanogpt.py", "stages.pretrain.program: nanogpt.py is not a program"),
        ("stages.pretrain.program", "evaluate", "stages.pretrain.program: evaluate is not a program"),
        ("stages.more.after", "pretrian", "stages.more.after: pretrian is not a stage above it; did you mean pretrain?"),  # noqa: E501
        ("stages.pretrain.after", "more", "stages.pretrain.after: more is not a stage above it"),
        ("stages.pretrain.seed", 3, "stages.pretrain: seed of plain is set by the trial itself"),
        ("stages.pretrain.config", "deno", "deno is neither a file nor an installed recipe; did you mean demo?"),
        ("stages.pretrain.arms.plain", {"weight_decay": 0.0, "learning_rate": 0.1}, "arms differ in learning_rate, weight_decay"),  # noqa: E501
        ("stages.pretrain.varies", "learning_rate", "varies says learning_rate; the arms differ in weight_decay"),
        ("stages.more.arms", {"third": {}}, "stages.more.arms.third.after: the arm that it follows is missing"),
        ("stages.more.arms", {"third": {"after": "plane"}}, "plane is not an arm of the stage before; did you mean plain?"),  # noqa: E501
        ("stages.pretrain.arms", {"a": {"x": 0.1}, "b": {"x": "1.0e-1"}}, "the arms a and b have the same flags"),
        ("stages.more.arms", {"a": {"after": "plain"}, "b": {"after": "plain"}}, "the arms a and b have the same flags"),  # noqa: E501
        ("stages.pretrain.parameters", {"lr": {"min": 0, "max": 1}}, "parameters.lr: give `value: X`"),
        ("prepare", ["rm -rf data"], "prepare: rm is not a program that can be used here"),
        ("prepare", ["prepare 'generate"], "close the quotation mark"),
        ("measure", ["train --dataset_name x"], "measure: train is not a program that can be used here"),
        ("measure", ["evaluate --model_name_or_path runs/a"], "--model_name_or_path is set by the trial itself"),
        ("measure", [{"command": "evaluate --dataset_name generated", "arms": ["plane"]}], "did you mean plain?"),
        ("measure", ["evaluate --dataset_name other"], "no `measure` evaluates more.plain on generated"),
        ("primary", None, None),
        ("primary.margin", -0.1, "margin -0.1 is not a distance"),
        ("primary.contrast", None, "contrast is missing, so nothing is tested"),
        ("primary.contrast", "plain - shuffled", "shuffled is not an arm"),
        ("primary.measure", "perplexity", "measure perplexity is unknown"),
        ("primary.table", "x.csv", "unknown key table of measure loss"),
        ("primary.expect", "equivalent", None),
        ("primary.expect", "bigger", "expect bigger is unknown"),
        ("primary", {"measure": "table", "table": "probes/lens/lens.csv", "contrast": "plain - decayed"}, "no `measure` writes"),  # noqa: E501
        ("controls", [{"measure": "loss", "dataset": "generated"}], "control: contrast is missing, so nothing is tested"),  # noqa: E501
        ("secondary", [TRIAL["primary"]], "two contrasts are called loss on generated: plain - decayed"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(tmp_path, path, value, line):
    if line is None:
        read(tmp_path, changed(path, value))
        return
    with pytest.raises(UsageError, match=r"decay\.yaml: ") as error:
        read(tmp_path, changed(path, value))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_worth_needs_the_learning_curve_of_the_second_arm(tmp_path):
    once, steps = "eval_loss of more.decayed is no learning curve", {"eval_strategy": "steps"}
    for flags, line in (
        ({}, once),
        (steps, None),
        ({"config": "demo"}, None),  # whose evaluations it has
        ({"config": "demo", "eval_strategy": "no"}, once),
        ({"eval_strategy": "no", "dense_eval_steps": 20}, None),
        ({**steps, "eval_datasets": "other"}, "eval_loss is not logged by more.decayed"),
    ):
        trial = changed("primary.worth", "eval_loss")
        trial["stages"]["more"] |= flags
        if line is None:
            assert read(tmp_path, trial).contrasts[0].outcome["worth"] == "eval_loss"
            continue
        with pytest.raises(UsageError, match=line):
            read(tmp_path, trial)
    trial = changed("primary.worth", "eval_loss")
    trial["primary"]["contrast"] = "plain"
    with pytest.raises(UsageError, match=r"worth: .* has no second arm"):
        read(tmp_path, trial)


def test_the_time_of_an_injection_needs_a_learning_curve(tmp_path):
    trial = {**copy.deepcopy(TRIAL), "secondary": copy.deepcopy(INJECTED)}
    with pytest.raises(UsageError, match=r"eval_loss of more.plain is no learning curve"):
        read(tmp_path, trial)
    trial["stages"]["more"]["eval_strategy"] = "steps"
    found = read(tmp_path, trial).contrasts[1].outcome["threshold"]
    assert found == {"injection": "learned", "reference": ["more", "plain"], "share": 0.5}
    wrong = {
        "threshold.injection lost": {"injection": "lost"},
        "share: 1 is not": {"share": 1},
        "key from": {"from": "a"},
    }
    for line, change in wrong.items():
        trial["secondary"]["threshold"] = {**INJECTED["threshold"], **change}
        with pytest.raises(UsageError, match=line):
            read(tmp_path, trial)


def test_equivalence_needs_a_margin(tmp_path):
    trial = changed("primary.expect", "equivalent")
    trial["primary"]["margin"] = 0
    with pytest.raises(UsageError, match="expect equivalent needs a margin"):
        read(tmp_path, trial)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("claim: x\n\tseeds: [1]\n", "it is not YAML (line 2"),
        ("claim: x\nclaim: y\n", "claim is given twice"),
        ("- a\n", "it does not contain `key: value` lines"),
        ("", "it does not contain `key: value` lines"),
    ],
)
def test_what_is_no_trial_is_one_line(tmp_path, text, line):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_trial(tmp_path / "t.yaml")
    assert line in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="it cannot be read"):
        read_trial(tmp_path / "none.yaml")


def test_the_example_is_a_trial_and_no_file_is_overwritten(tmp_path, capsys):
    path = new.main([str(tmp_path / "trials" / "mine.yaml")])
    trial = read_trial(path)
    assert trial.of("primary")
    assert trial.name == "mine"
    assert f"lm-trials plan {path}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        new.main([str(path)])
    assert stop.value.code == 2
    assert "exists; give another name" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_every_trial_of_the_repository_is_accepted_by_its_programs():
    files = sorted((Path(__file__).parents[2] / "trials").glob("*.yaml"))
    assert len(files) > 4
    jobs = {}
    for file in files:
        trial = read_trial(file)
        for job in distinct(jobs_of(trial, Path("runs") / trial.name), trial):
            # The arms of a measure differ in the model alone.
            jobs.setdefault(f"{trial.name} {job.name if job.receipt is None else job.kind}", job)
    executor = LocalExecutor(threads=1)
    assert all(executor.check(list(jobs.values())))
    (job, *_) = jobs.values()
    with pytest.raises(UsageError, match="--num_story"):
        executor.check([replace(job, words=(*job.words, "--num_story", "3"))])


def paths_of(place, above=""):
    """The dotted path of each value of a trial."""
    for key, value in place.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from paths_of(value, f"{above}{key}.")


TIMES = {"measure": "updates_to_threshold", "metric": "eval_loss", "contrast": "plain - decayed", "horizon": 3}
TIMES["threshold"] = {"reference": "plain", "from": "decayed", "share": 0.5}
INJECTED = {**TIMES, "threshold": {"injection": "learned", "reference": "plain", "share": 0.5}, "metric": "eval_loss"}
TABLE = {"measure": "table", "table": "eval/generated/x.csv", "where": {"a": "b"}, "contrast": "plain - decayed"}
ODD = (None, True, 0, -1.5, "", " ", ".", "a - b - c", "1e-3", float("nan"), [], {}, [None], [["a"]], [{"a": 1}],
       {"a": "b"}, {"a": ["b"]}, {0: {}}, {None: None}, {"after": ["a"]})  # fmt: skip


@pytest.mark.parametrize(
    "secondary", [TIMES, INJECTED, TABLE, {**TRIAL["primary"], "unit": "bits per byte", "stage": "more"}]
)
def test_any_value_in_any_place_is_read_or_is_one_line(tmp_path, secondary):
    path = tmp_path / "decay.yaml"
    base = copy.deepcopy({**TRIAL, "secondary": secondary})
    base["stages"]["more"] |= {
        "eval_strategy": "steps",
        "parameters": {"x": {"values": [1]}},
        "varies": ["weight_decay"],
    }
    base["measure"] = {"command": "evaluate --dataset_name generated", "arms": ["more"]}
    draw, lines = random.Random(0), []
    for name in paths_of(base):
        *above, last = name.split(".")
        for odd in draw.sample(ODD, 3):
            trial = copy.deepcopy(base)
            place = trial
            for key in above:
                place = place[key]
            place[last] = odd
            try:
                jobs_of(read_trial(write_trial(path, trial)), Path("runs/decay"))
            except UsageError as error:
                lines.append(str(error))
    assert len(lines) > len(ODD)
    assert not any("\n" in line for line in lines)


def test_no_two_runs_have_one_folder(tmp_path):
    """Names that are parts of each other, with the hyphens that join stage, arm and values."""
    draw, results = random.Random(0), Counter()
    parts = ["a", "b", "a-b", "b-a", "s0", "a-s0"]
    for _ in range(60):
        stages = {}
        for stage in draw.sample(parts, 2):
            values = {"x": {"values": draw.sample([*parts, "a/b"], 2)}, "y": {"values": draw.sample(parts, 2)}}
            arms = {arm: {"z": arm} for arm in draw.sample(parts, 2)}
            grid = draw.choice([{"arms": arms}, {"parameters": values}, {"arms": arms, "parameters": values}])
            varies = [*(["x", "y"] if "parameters" in grid else []), *(["z"] if "arms" in grid else [])]
            stages[stage] = {"program": "train", "varies": varies, **grid}
        runs = sum((2 if "arms" in of else 1) * (4 if "parameters" in of else 1) for of in stages.values())
        try:
            jobs = jobs_of(read(tmp_path, {"claim": "c", "seeds": [0], "stages": stages}), Path("runs"))
        except UsageError as error:
            results["called" in str(error) or "folder" in str(error)] += 1
        else:
            assert len({job.folder for job in jobs}) == runs
            results["read"] += 1
    assert set(results) == {True, "read"}
    assert min(results.values()) > 5


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "'0.001'"])
def test_a_number_is_as_it_is_written(tmp_path, text):
    path = write_trial(tmp_path / "decay.yaml", changed("primary.margin", "MARGIN"))
    path.write_text(path.read_text().replace("MARGIN", text))
    assert read_trial(path).contrasts[0].margin == 0.001


def test_a_stage_may_have_a_dot_in_its_name(tmp_path):
    stages = {"a.b": TRIAL["stages"]["pretrain"], "a": {**TRIAL["stages"]["more"], "after": "a.b"}}
    trial = read(tmp_path, {**TRIAL, "stages": stages, "primary": None, "measure": [
        {"command": "evaluate", "arms": ["a.b.plain", "a.decayed", "a.b"]}]})  # fmt: skip
    assert trial.measures[0].arms == (("a.b", "plain"), ("a", "decayed"), ("a.b", "decayed"))


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("primary.contrast", "plain - more.plain", "is always 0; name two arms"),
        ("primary.unit", "bits", "unit bits is unknown; valid: bits per byte, nats per token"),
        ("primary.sentences_with", "Twist", "add: evaluate --dataset_name generated --sentences_with Twist"),
        ("measure", ["evaluate --dataset_name gen"], "no `measure` evaluates more.plain on generated"),
        ("stages.pretrain.data-seed", 3, "data-seed of plain is set by the trial itself"),
    ],
)
def test_what_would_silently_mean_something_else_is_refused(tmp_path, path, value, line):
    with pytest.raises(UsageError, match=re.escape(line)):
        read(tmp_path, changed(path, value))


@pytest.mark.parametrize(
    ("commands", "refused"),
    [
        (["evaluate --dataset_name a", "evaluate --dataset_name a b --max_eval_samples 4"], True),
        (["evaluate --dataset_name a", "evaluate --dataset_name=a --dataset_split validation"], True),
        (["evaluate --dataset_name a", "evaluate --dataset_name a --dataset_split train"], False),
        (["evaluate --dataset_name a", "evaluate --dataset_name a --layout packed"], False),
        (["evaluate --dataset_name a", "evaluate --dataset_name b"], False),
        (["evaluate", "evaluate --by features"], True),
        (["probe lens --layers 1", "probe lens --layers 2"], True),
        (["probe lens --layers 1", "probe weights --layers 1"], False),
        (["latent-city --dataset_name a", "latent-city --dataset_name b"], True),
    ],
)
def test_two_commands_that_write_to_one_folder_are_refused(tmp_path, commands, refused):
    measure = [*TRIAL["measure"], *commands]
    path = write_trial(tmp_path / "t.yaml", changed("measure", measure))
    apart = [
        {"command": command, "arms": [f"more.{arm}"]}
        for command, arm in zip(commands, ("plain", "decayed"), strict=True)
    ]
    read_trial(write_trial(tmp_path / "apart.yaml", changed("measure", [*TRIAL["measure"], *apart])))
    if refused:
        with pytest.raises(
            UsageError, match=r"measure: two commands would write the results of more.plain to one folder"
        ):
            read_trial(path)
    else:
        read_trial(path)
