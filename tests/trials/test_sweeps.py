"""Sweep files of W&B: agents train the runs of the trial, and what W&B accepts is read as a trial."""

import itertools
import re
from pathlib import Path

import pytest
import yaml
from trials.trial_texts import TRIAL, changed, write_trial

from lm_trials.console import UsageError
from lm_trials.flags import filled
from lm_trials.trials import sweeps
from lm_trials.trials.graph import jobs_of
from lm_trials.trials.registration import read_registration
from lm_trials.trials.trial_file import read_trial

PUBLISHED = Path(__file__).parents[2] / "sweeps"
GRID = {
    "program": "train",
    "sentences_with": ["Twist", "Dialogue"],
    "bf16": True,
    "eval_strategy": "no",
    "parameters": {
        "dataset_name": {"values": ["sets/a", "b"]},
        "learning_rate": {"values": "RATES"},
        "weight_decay": {"value": 0.0},
    },
}
SWEEP = {
    "method": "grid",
    "program": "train_gpt2.py",
    "parameters": {"learning_rate": {"values": [0.1, 0.01]}, "dataset_name": {"value": "generated"}},
}


def grid_trial(rates):
    """A trial whose first stage is a grid, and whose second follows each of its arms; `rates` as YAML has them."""
    stages = {"first": {**GRID, "varies": ["dataset_name", "learning_rate"]}}
    stages["second"] = {"program": "train", "after": "first", "dataset_name": "c", "arms": {"x": {"after": "b-0.1"}}}
    text = yaml.safe_dump({**TRIAL, "stages": stages, "measure": None, "primary": None}, sort_keys=False)
    Path("grid.yaml").write_text(text.replace("RATES", rates))
    return Path("grid.yaml")


def agents(path):
    """The commands that W&B's agents run: each point as `--name=value`, in place of ${args}."""
    # W&B's client writes the file again, with 1e-3 in no quotation marks, and its server, in Go, reads a number there.
    sent = re.sub(
        r"(?<=[:-] )\d+e-\d+$",
        lambda found: f"{float(found[0]):f}",
        yaml.dump(yaml.safe_load(path.read_text())),
        flags=re.M,
    )
    sweep = yaml.safe_load(sent)
    values = {name: about.get("values", [about.get("value")]) for name, about in sweep["parameters"].items()}
    for point in itertools.product(*values.values()):
        args = [f"--{name}={value}" for name, value in zip(values, point, strict=True)]
        words = [args if word == "${args}" else [word] for word in sweep["command"]]
        yield list(itertools.chain(*words))


def flags_of(words):
    """The flags of a command line, each with its words."""
    found = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        else:
            found[name].append(word)
    return found


def trained(paths):
    """The flags of all runs of sweeps, by their folders."""
    runs = [flags_of(filled(words[3:])) for path in paths for words in agents(path)]
    found = {run["output_dir"][0]: run for run in runs}
    assert len(found) == len(runs)  # no two share a folder
    return found


@pytest.mark.parametrize(("rates", "files"), [("[0.1, 0.001]", 2), ("[0.1, 1e-3]", 3)])
def test_agents_train_the_runs_of_the_trial(rates, files):
    trial = grid_trial(rates)
    paths = sweeps.main([str(trial)])
    assert len(paths) == files  # W&B makes another text of 1e-3, so that it has a sweep of its own
    jobs = [job for job in jobs_of(read_trial(trial), Path("runs/grid")) if job.folder]
    wanted = {str(job.folder): flags_of(job.words[1:]) for job in jobs}
    found = trained(paths)
    assert len(wanted) == 2 * (2 * 2 + 1)
    assert found.keys() == wanted.keys()
    for folder, flags in wanted.items():
        assert flags.pop("data_seed") == flags["seed"]  # the program's default
        assert found[folder].pop("report_to") == ["wandb"]
        if rate := flags.pop("learning_rate", None):
            assert float(found[folder].pop("learning_rate")[0]) == float(rate[0])  # W&B writes it its own way
        assert found[folder] == flags
    assert found["runs/grid/second-x-s1"]["model_name_or_path"] == ["runs/grid/first-b-0.1-s1"]
    assert read_registration(Path("runs/grid"))["registered"]["test"]["seeds"] == [0, 1]


def test_a_named_arm_has_a_sweep_of_its_own_and_the_order_is_that_of_the_stages():
    paths = sweeps.main([str(write_trial(Path("decay.yaml"))), "--output_dir", "out"])
    assert [path.stem for path in paths] == ["pretrain-plain", "pretrain-decayed", "more-plain", "more-decayed"]
    text = paths[2].read_text()
    assert "# Needs: lm-trials prepare generate --num_stories 300\n" in text
    assert "# Needs: all runs of stage pretrain\n" in text
    assert "stage pretrain" not in paths[0].read_text().partition("# Needs")[2]


def test_an_exported_sweep_is_read_as_the_same_runs():
    (first, *_) = sweeps.main([str(grid_trial("[0.1, 0.001]"))])
    stage, again = read_trial(Path("grid.yaml")).stages["first"], read_trial(first).stages["first"]
    assert again.arms == stage.arms
    assert again.program == stage.program
    assert again.grid == stage.grid
    described = [{arm: {k: str(v) for k, v in of.items()} for arm, of in each.flags.items()} for each in (again, stage)]
    assert described[0] == described[1]
    assert read_trial(first).seeds == (0, 1)
    assert not read_trial(first).contrasts


def test_a_sweep_is_a_trial_of_one_stage_without_outcome():
    trial = read_trial(write_trial(Path("rates.yaml"), SWEEP))
    assert trial.seeds == (42,)  # as the program that agents run without --seed
    assert trial.stages["rates"].arms == ("0.1", "0.01")
    assert [str(job.folder) for job in jobs_of(trial, Path("runs/rates"))] == [
        "runs/rates/rates-0.1-s42",
        "runs/rates/rates-0.01-s42",
    ]
    tuned = {**SWEEP, "command": ["${env}", "python", "${program}", "--bf16", "--modules=a", "b", "${args}"]}
    stage = read_trial(write_trial(Path("t.yaml"), {**tuned, "program": "clone/sft_lora.py"})).stages["t"]
    assert stage.program == "tune"
    aligned = read_trial(write_trial(Path("t.yaml"), {**tuned, "program": "clone/align_lora.py"})).stages["t"]
    assert aligned.program == "align"
    assert stage.flags["0.1"]["bf16"] is True
    assert stage.flags["0.1"]["modules"] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"method": "bayes"}, "method: bayes chooses runs by earlier results or chance; write `method: grid`"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: a trial trains all runs"),
        ({"paramters": {}}, "unknown key paramters; did you mean parameters?"),
        ({"parameters": None}, "parameters is not a mapping"),
        ({"parameters": {"lr": {"distribution": "uniform", "min": 0, "max": 1}}}, "parameters.lr: give `value: X`"),
        ({"parameters": {"model": {"parameters": {"lr": {"value": 1}}}}}, "parameters.model: give `value: X`"),
        ({"parameters": {"seed": {"values": [1, 1]}}}, "seeds: 1 is given twice"),
        ({"parameters": {"data_seed": {"value": 1}}}, "data_seed of one is set by the trial itself"),
        ({"program": "nanogpt.py"}, "command: nanogpt.py '${args}' runs none of lm-trials train"),
        ({"command": "lm-trials train"}, "command: lm-trials train is not a list"),
        ({"command": ["lm-trials", "train", "fast", "${args}"]}, "command: fast has no flag before it"),
    ],
)
def test_what_is_no_grid_of_a_training_is_one_line(change, line):
    with pytest.raises(UsageError, match=r"one\.yaml: ") as error:
        read_trial(write_trial(Path("one.yaml"), {**SWEEP, **change}))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_published_grids():
    deletion, recovery = (PUBLISHED / f"{name}.yaml" for name in ("deletion", "recovery"))
    deleted, recovered = trained([deletion]), trained([recovery])
    assert len(deleted) == 8 * 3
    assert len({tuple(run["dataset_name"]) for run in deleted.values()}) == 8
    assert {float(run["learning_rate"][0]) for run in deleted.values()} == {1e-3, 1e-4, 1e-5}
    models = {run["model_name_or_path"][0] for run in recovered.values()}
    assert len(models) == 18 + 1
    assert models - deleted.keys() == {"runs/base91M-no-Twist"}
    for path, runs in ((deletion, deleted), (recovery, recovered)):  # `lm-trials run` has the same folders
        assert {str(job.folder) for job in jobs_of(read_trial(path), Path("runs") / path.stem)} == runs.keys()


def test_a_name_in_braces_is_filled_from_the_command_line():
    words = ["--seed", "3", "--run_name=a-s{seed}", "--output_dir", "runs/{run_name}", "--note", "{seed}"]
    assert filled(words) == ["--seed", "3", "--run_name=a-s3", "--output_dir", "runs/a-s3", "--note", "{seed}"]
    with pytest.raises(UsageError, match=r"--output_dir: \{seed\} has no value; give --seed"):
        filled(["--output_dir=runs/s{seed}"])


# `wandb` leaves the files open that it reads, and `sweeps` uses names of pydantic 1.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Valid config keys have changed")
def test_wandb_accepts_the_files():
    """With `wandb` and its package `sweeps`, which has the schema; 409 MB with their dependencies."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils", reason="W&B's schema: pip install 'wandb[sweeps]'")
    schema = pytest.importorskip("sweeps.config", reason="W&B's schema: pip install 'wandb[sweeps]'")
    grid = pytest.importorskip("sweeps.grid_search")
    exported = sweeps.main([str(grid_trial("[0.1, 0.001]"))])
    exported += sweeps.main([str(write_trial(Path("decay.yaml"), changed("stages.more.max_steps", 5)))])
    for path in (*PUBLISHED.glob("*.yaml"), *exported):
        config = utils.load_sweep_config(str(path))
        assert schema.schema_violations_from_proposed_config(config) == []
        assert schema.schema_violations_from_proposed_config({**config, "method": "exhaustive"})
        runs = [run.config for run in grid.grid_search_next_runs([], config, validate=True, n=100) if run]
        args = {tuple(sorted(utils.create_sweep_command_args({"args": run})["args"])) for run in runs}
        ours = {tuple(sorted(word for word in words if word[:2] == "--" and "=" in word)) for words in agents(path)}
        assert args == ours
