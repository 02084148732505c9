"""Any value of any flag of any command gives a result, or one line and status 2; nothing outside named folders changes.

The commands run in this process on tiny data, models and texts.  Trainings stop where `Trainer.train` would begin, the
demo before its first command, the archive before its download; the tests of those commands run them to the end.
"""

import json
import math
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from transformers import Trainer

from lm_trials import cli
from lm_trials.commands import cache as cache_command
from lm_trials.commands import demo, prepare
from lm_trials.dashboard.command import DashboardArguments
from lm_trials.evaluation.constraint_flags import ConstraintArguments
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.generate import GenerationArguments
from lm_trials.flags import LARGEST
from lm_trials.latent_city.flags import LatentCityArguments
from lm_trials.models import llama2c
from lm_trials.rewards.flags import RewardArguments
from lm_trials.stories import download
from lm_trials.training.alignment_flags import CommonAlignmentArguments, MethodArguments
from lm_trials.training.data_order import OrderArguments
from lm_trials.training.flags import CommonTrainingArguments, DataArguments, ModelArguments
from lm_trials.training.tuning_flags import Adapter, AdapterArguments, CommonSftArguments, PairArguments, PairData
from lm_trials.trials import trial_tables
from lm_trials.trials.compare import CompareArguments
from lm_trials.trials.local import LocalExecutor
from lm_trials.trials.new import EXAMPLE, NewArguments
from lm_trials.trials.plan import PlanArguments
from lm_trials.trials.power import PowerArguments
from lm_trials.trials.reproduce import TABLES, ReproduceArguments
from lm_trials.trials.run import RunTrialArguments, TrialArguments
from lm_trials.trials.sweeps import ExportArguments
from lm_trials.trials.trial_report import ReportArguments

RUN, OTHER, SAVED = "../models/run", "../models/other", "../models/saved"
DATA = {"data_cache_dir": "../data"}
ONE, TWO = {"model_name_or_path": RUN}, {"model_name_or_path": f"{RUN} {OTHER}"}
TINY, SHORT = {"corpus": "tiny", **DATA}, {"corpus": "short", "vocab_size": 400, **DATA}
TEXTS = {"dataset_name": "short", "max_eval_samples": 8, **DATA}
TRAINING = {"max_steps": 2, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2, **DATA}
SHAPE = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"
# The classes of each command's flags, and flags with which it ends in about a second.
COMMANDS = {
    "demo": ((demo.DemoArguments,), {}),
    "train": (
        (DataArguments, ModelArguments, CommonTrainingArguments),
        {**TRAINING, "dataset_name": "short", "vocab_size": 400, "block_size": 16, "config_overrides": SHAPE}
        | {"model_type": "llama"},
    ),
    "tune": (
        (PairArguments, AdapterArguments, CommonSftArguments),
        {**ONE, **TRAINING, "dataset_name": "../pairs.jsonl", "max_length": 64, "lora_r": 2},
    ),
    "align": (
        (PairData, Adapter, MethodArguments, CommonAlignmentArguments),
        {**ONE, **TRAINING, "method": "dpo", "dataset_name": "../preferences.jsonl", "max_length": 64, "lora_r": 2},
    ),
    "evaluate": ((EvaluationArguments,), ONE | TEXTS),
    "generate": ((GenerationArguments,), ONE | {"max_new_tokens": 3}),
    "constraints": (
        (ConstraintArguments,),
        {**ONE, **DATA, "dataset_name": "pairs", "num_prompts": 2, "max_new_tokens": 3, "mode": "instruct"},
    ),
    "rewards": ((RewardArguments,), {**DATA, "dataset_name": "pairs", "reward_funcs": "words", "num_prompts": 2}),
    "latent-city": (
        (LatentCityArguments,),
        {**ONE, **DATA, "dataset_name": "cities", "num_samples": 1, "seeds": 0, "num_choices": 1, "max_known": 3}
        | {"max_new_tokens": 2, "prompt_layout": "completion"},
    ),
    "new": ((NewArguments,), {"output": "out/mine.yaml"}),
    "plan": ((PlanArguments,), {"trial": "../trial.yaml", "rehearse": False}),
    "run": ((RunTrialArguments,), {"trial": "../trial.yaml"}),
    "status": ((TrialArguments,), {"trial": "../trial.yaml"}),
    "report": (
        (ReportArguments,),
        {"trial": "../trial.yaml", "runs_dir": "../trial_runs", "output_dir": "out/results"},
    ),
    "reproduce": ((ReproduceArguments,), {"results": "../reported"}),
    "export-sweeps": ((ExportArguments,), {"trial": "../trial.yaml", "output_dir": "out/sweeps"}),
    "compare": ((CompareArguments,), {"runs": f"{RUN} {OTHER}"}),
    "power": ((PowerArguments,), {"difference": 0.02, "spread": 0.022}),
    "order": ((OrderArguments,), {"run": RUN, **DATA}),
    "dashboard": ((DashboardArguments,), {"runs_dir": "../models"}),
}
OF_PREPARE = {
    "generate": {"corpus": "new", "num_stories": 200, **DATA},
    "download": DATA,
    "ingest": {"source": "../stories.jsonl", "corpus": "new", **DATA},
    "derive": {**TINY, "dataset_name": "new", "words_per_story": 40},
    "train_vocab": {**TINY, "vocab_size": 330, "max_stories": 20},
    "pretokenize": {**TINY, "vocab_size": 400},
    "protocol_set": {**SHORT, "dry_run": True},
    "instruct": TINY,
    "preferences": {
        **ONE,
        **DATA,
        "dataset_name": "pairs",
        "reward_funcs": "length:3",
        "num_samples": 3,
        "margin": 0.001,
        "num_prompts": 4,
        "max_new_tokens": 3,
        "temperature": 1,
        "mode": "instruct",
    },
    "metadata": {"dataset_name": "../stories.jsonl", "sentiment": False, **DATA},
    "describe": {**TINY, "max_stories": 20, "max_held_out": 5},
}
OF_CACHE = {
    "fetch": {"dataset_name": "../stories.jsonl", **DATA},
    "list": DATA,
    "verify": DATA,
    "recipe": {"file": "../recipe.yaml"},
    "atlas": {"num_documents": 100, "num_questions": 10, **DATA},
    "distances": {"rows_per_city": 20, **DATA},
}
OF_LLAMA2C = {
    "import": {"source": "../llama2c/model.bin", "tokenizer_name": "../data/tok400", "output_dir": "out/imported"},
    "export": {"model_name_or_path": RUN, "output": "out/model.bin"},
}
OF_PROBES = {
    "attention": {**ONE, **TEXTS, "max_eval_samples": 20, "num_untrained": 2, "induction_sequences": 0}
    | {"map_tokens": 4},
    "bias": {**ONE, "num_stories": 64, "num_contexts": 10, "max_new_tokens": 3, "num_controls": 2},
    "diversity": {**ONE, **DATA, "dataset_name": "short", "num_batches": 3, "num_control_batches": 0, "batch_size": 2}
    | {"max_length": 8, "finetune_steps": 1, "fisher_draws": 2},
    "durability": {**TWO, **DATA, "dataset_name": "tiny", "max_eval_samples": 20, "metric": "words"},
    "embeddings": {**ONE, **DATA, "max_tokens": 40, "permutations": 20},
    "feature_probe": {**ONE, **DATA, "dataset_name": "short", "num_train_stories": 120, "num_shuffles": 2, "l2": 1}
    | {"features": "Twist", "pooling": "mean"},
    "lens": {**ONE, **TEXTS, "lens_steps": 1, "max_train_samples": 8},
    "patching": {**TWO, **TEXTS, "components": "residual"},
    "saturation": {"model_name_or_path": SAVED, **TEXTS, "max_new_tokens": 2, "window_records": 10, "metrics": "words"},
    "similarity": {**TWO, "candidate_tokens": "any", "num_queries": 2},
    "weights": {**TWO, **TEXTS, "directions": 1, "prune_shares": 0.5, "random_draws": 2, "ranking_samples": 4}
    | {"draws": 2},
}
COMMANDS |= {f"prepare {name}": ((prepare.COMMANDS[name][0],), base) for name, base in OF_PREPARE.items()}
COMMANDS |= {f"cache {name}": ((cache_command.COMMANDS[name][0],), base) for name, base in OF_CACHE.items()}
COMMANDS |= {f"llama2c {name}": ((llama2c.COMMANDS[name][0],), base) for name, base in OF_LLAMA2C.items()}
for probe, base in OF_PROBES.items():
    COMMANDS[f"probe {probe}"] = (import_module(f"lm_trials.probing.{probe}.flags").ARGUMENTS, base)

# Flags that name where results go, and the folders of results without them.
PLACES = {"output_dir", "tables_dir", "matrix_dir", "merge_output", "output", "json", "runs_dir", "export", "space"}
RESULTS = (
    "work/out",
    "work/runs",
    *(f"models/{run}/{to}" for run in ("run", "other", "saved") for to in ("eval", "probes")),
)
WRITE_DATA = ("prepare", "cache", "train", "tune", "align")  # into --data_cache_dir
# Flags that set how much is computed: within their bounds they stay small.
WORK = {
    "num_stories", "num_documents", "num_questions", "num_samples", "num_generations", "num_untrained", "num_batches",
    "num_control_batches", "num_shuffles", "num_proc", "num_prompts", "num_choices", "num_queries", "num_train_epochs",
    "num_sampled_stories", "max_steps", "max_train_tokens", "lens_steps", "finetune_steps", "fisher_draws", "draws",
    "random_draws", "permutations", "known_rows", "rows_per_city", "generate", "induction_sequences", "lora_r",
    "dense_eval_steps", "dataloader_num_workers", "per_device_train_batch_size", "gradient_accumulation_steps",
}  # fmt: skip
NUMBERS = (
    "0", "-0", "1", "-1", "2", "3", "2.5", "1e-9", "1e9", str(2**31), str(LARGEST), str(LARGEST + 1), "9" * 400,
    "9" * 5000, "1e400", "inf", "-inf", "nan", "None", "", " ", "x", "0x1", "1_0", "１", "²", "True",
)  # fmt: skip
WORDS = (
    "", " ", ".", "..", "../x", "../../x", "a/b", "/", "\\", "-x", "--x", "+", "a+b", "a,b", ",", "~", "#", "%s", "{x}",
    "[b]", "é", "日本", "\u202e", "\x07", "\n", "\0", "\ud800", "None", "0", "9" * 5000, "²", "nan", "con", "x" * 300,
    "é" * 150, "[", "{", "../stories.jsonl", "../data",
)  # fmt: skip


class Started(BaseException):
    """What takes long would begin now."""


def start(*args, **kwargs):
    raise Started


@pytest.fixture(scope="module")
def world(tiny_data, tiny_base, tmp_path_factory):
    """A folder with `data`, `models` and files to read, and the empty working folder `work`."""
    world = tmp_path_factory.mktemp("world")
    (world / "work").mkdir()
    (world / "short").mkdir()
    for name in ("run", "other"):
        shutil.copytree(tiny_base, world / "models" / name)
    shutil.copytree(tiny_base, world / "models" / "saved")
    for step in (1, 30):
        shutil.copytree(tiny_base, world / "models" / "saved" / f"checkpoint-{step}")
    for name in ("tiny", "tok400"):
        shutil.copytree(tiny_data / name, world / "data" / name)
    texts = [f"One day, {name} saw a {thing}. It was red." for name in ("Lily", "Tom", "Mia") for thing in "abcdefghij"]
    features = (["Twist"], ["Foreshadowing"], [], ["Twist", "Dialogue"])
    for split, count in {"train": 120, "validation": 40, "test": 40}.items():
        rows = [{"story": f"{split} {n}. {texts[n % 30]}", "features": features[n % 4]} for n in range(count)]
        write_rows(world / "short" / f"{split}.jsonl", rows)
    write_rows(world / "stories.jsonl", [{"text": text} for text in texts])
    write_rows(world / "pairs.jsonl", [{"prompt": f"Write of {n} cats.", "completion": "A cat."} for n in range(40)])
    preferences = [{"prompt": f"Write of {n} cats.", "chosen": "A cat.", "rejected": "No."} for n in range(40)]
    write_rows(world / "preferences.jsonl", preferences)
    shutil.copy(EXAMPLE, world / "trial.yaml")
    (world / "reported").mkdir()
    shutil.copy(EXAMPLE, world / "reported" / "trial.yaml")
    for table, (keys, numbers) in TABLES.items():
        columns = dict.fromkeys(keys, "a") | dict.fromkeys(numbers, "0.5")
        (world / "reported" / table).write_text("\n".join((",".join(columns), ",".join(columns.values()))) + "\n")
    a_run = world / "trial_runs" / "trial" / "pretrain-constant-s0"
    shutil.copytree(tiny_base, a_run)
    described = json.loads((a_run / "run.json").read_text())
    described["replicate"] |= {"seed": 0, "data_seed": 0}
    described["logistics"]["run_name"] = described["run_name"] = a_run.name
    (a_run / "run.json").write_text(json.dumps(described))
    (world / "recipe.yaml").write_text("- {dataset_name: ../stories.jsonl, data_cache_dir: ../data}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world / "work")
        for line in (
            "prepare ingest --source ../short --corpus short --data_cache_dir ../data",
            "prepare pretokenize --corpus short --vocab_size 400 --data_cache_dir ../data",
            "prepare instruct --corpus tiny --dataset_name pairs --data_cache_dir ../data",
            "cache distances --name cities --rows_per_city 20 --data_cache_dir ../data",
            f"evaluate --model_name_or_path {RUN} {OTHER} --dataset_name short --data_cache_dir ../data",
            f"llama2c export {RUN} ../llama2c/model.bin",
        ):
            cli.main(line.split())
        shutil.rmtree("out")
        run_file = world / "models" / "other" / "run.json"  # as trained with another seed, so that they are compared
        run_file.write_text(run_file.read_text().replace('"seed": 42', '"seed": 43'))
        shutil.copytree(world / "data", saved(world / "data"))
        shutil.copytree(world / "models", saved(world / "models"))
        # Drawing takes most of a probe's time.
        patch.setattr(Figure, "savefig", lambda figure, path, **settings: Path(path).write_bytes(b""))
        patch.setattr(Trainer, "train", start)
        patch.setattr(download, "download_archive", start)
        patch.setattr(demo, "steps", start)
        patch.setattr(LocalExecutor, "__init__", start)
        patch.setattr(trial_tables, "collect", start)
        patch.setitem(sys.modules, "lm_trials.dashboard.app", SimpleNamespace(serve=start))
        yield world


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def saved(folder):
    """Where a copy of a folder lies, outside the world."""
    return folder.parent.with_name(f"{folder.parent.name}-{folder.name}")


def kind_of(hint):
    """The type of one value, whether it is in a list, and its valid words."""
    if type(None) in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is list:
        return get_args(hint)[0], True, ()
    return (str, False, get_args(hint)) if get_origin(hint) is Literal else (hint, False, ())


def makes_work(name, check, word):
    """Whether a word is a number that its flag takes and that would keep the command busy."""
    try:
        number = float(word)
    except ValueError:
        return False
    small = max(check.least or 0, check.above or 0, 2) + 1
    return name in WORK and math.isfinite(number) and check.holds(number) and small < abs(number) <= LARGEST


@cache
def words_of(kind, name):
    """The words that a flag is tried with: at its bounds, beside them, beyond them, and of other types."""
    check = next(field.metadata["check"] for field in fields(kind) if field.name == name)
    type_, _, valid = kind_of(get_type_hints(kind)[name])
    if type_ is bool:
        return ("True", "False", "None", "", "x", "2")
    if type_ is str:
        return (*valid, *check.one_of, *WORDS)
    edges = [edge for edge in (check.least, check.above, check.most, check.below) if edge is not None]
    near = [f"{edge + step:.17g}" for edge in edges for step in (-1, 0, 1)]
    return tuple(word for word in (*near, *NUMBERS) if not makes_work(name, check, word))


@st.composite
def flags_of(draw, command):
    """One to three flags with their words, and whether they stand in a configuration file."""
    kinds = {field.name: kind for kind in COMMANDS[command][0] for field in fields(kind) if field.init}
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3, unique=True)):
        type_, several, _ = kind_of(get_type_hints(kinds[name])[name])
        word = st.sampled_from(words_of(kinds[name], name))
        word = word | st.text(max_size=6) if type_ is str else word
        found[name] = draw(st.lists(word, max_size=3) if several else st.lists(word, min_size=1, max_size=1))
    return found, draw(st.integers(0, 3)) == 0


def state(folder):
    """Every file with its size and time of change, and every folder."""
    found = {}
    for place, _, names in os.walk(folder):
        found[place] = None
        for path in (os.path.join(place, name) for name in names):
            status = os.lstat(path)
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def outcome(words):
    """Run a command; returns its exit status, or None where it was stopped, and what it said on stderr."""
    said = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(said):
        try:
            cli.main(words)
        except Started:
            return None, said.getvalue()
        except SystemExit as left:
            return left.code, said.getvalue()
    return 0, said.getvalue()


def check_command(world, command, found, in_file=False):
    """Run a command with flags in place of its own, check what came of it, and tidy up; returns its error, if any."""
    words = command.split()
    for name, value in COMMANDS[command][1].items():
        words += [f"--{name}", *str(value).split()] if name not in found else []
    if in_file:
        config = world / "flags.yaml"
        config.write_text(json.dumps({name: given if len(given) != 1 else given[0] for name, given in found.items()}))
        words.append(f"--config={config}")
    else:
        for name, given in found.items():
            words += [f"--{name}={given[0]}"] if len(given) == 1 else [f"--{name}", *given]
    places = [world / place for place in RESULTS]
    named = [word for name in PLACES & found.keys() for word in found[name]]
    if command.split()[0] in WRITE_DATA:
        named += found.get("data_cache_dir", ["../data"])
    places += [Path(os.path.normpath(world / "work" / word)) for word in named if word.strip() and "\0" not in word]
    if command == "llama2c export":
        places += [place.with_name(llama2c.TOKENIZER) for place in places[len(RESULTS) :]]
    before = state(world)
    status, said = outcome(words)
    after = state(world)
    changed = {Path(path) for path in before | after if before.get(path, 0) != after.get(path, 0)}
    try:
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert status in (0, 2, None), said
        assert len(errors) == (status == 2), said
        outside = {p for p in changed if not any(place in (p, *p.parents) or p in place.parents for place in places)}
        assert not outside, outside
        if status == 2:
            assert said.splitlines()[-1] == errors[0]
            # What a training has read is prepared for the next one.
            kept = world / "data" if command in ("train", "tune", "align") else None
            assert not {p for p in changed if kept not in p.parents}, (errors, changed)
        return errors[0] if errors else None
    finally:
        if any(p.is_relative_to(world / "work") or p.is_relative_to(world / "models") for p in changed):
            for place in ("work", "models"):
                empty(world / place)
            shutil.copytree(saved(world / "models"), world / "models", dirs_exist_ok=True)
        if any(p.is_relative_to(world / "data") for p in changed):
            empty(world / "data")
            shutil.copytree(saved(world / "data"), world / "data", dirs_exist_ok=True)


def empty(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_every_command_is_tried():
    known = {f"prepare {name}" for name in prepare.COMMANDS} | {f"cache {name}" for name in cache_command.COMMANDS}
    known |= {f"probe {name}" for name in cli.probes()}
    known |= {f"llama2c {name}" for name in llama2c.COMMANDS}
    known |= cli.COMMANDS.keys() - {"prepare", "cache", "probe", "llama2c"}
    assert COMMANDS.keys() == known
    names = {field.name for kinds, _ in COMMANDS.values() for kind in kinds for field in fields(kind)}
    assert names >= WORK | PLACES


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_itself_is_no_mistake(world, command):
    assert check_command(world, command, {}) is None


FEW = settings(max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("command", COMMANDS)
@FEW
@given(data=st.data())
def test_any_flags_give_a_result_or_one_line(world, command, data):
    check_command(world, command, *data.draw(flags_of(command)))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@settings(FEW, max_examples=150, derandomize=False)
@given(data=st.data())
def test_any_flags_give_a_result_or_one_line_many_times(world, command, data):
    check_command(world, command, *data.draw(flags_of(command)))


@pytest.mark.parametrize(
    ("command", "flag", "word"),
    [
        ("train", "run_name", "../../x"),
        ("tune", "run_name", "../../x"),
        ("cache atlas", "name", "../x"),
        ("cache distances", "name", "../x"),
        ("prepare generate", "corpus", ""),
        ("prepare pretokenize", "dataset_name", "a+b"),
        ("prepare instruct", "dataset_name", "-x"),
        ("prepare ingest", "corpus", "x" * 201),
        ("prepare generate", "data_cache_dir", ""),
        ("train", "output_dir", ""),
        ("evaluate", "tables_dir", " "),
        ("train", "eval_steps", "0"),
        ("train", "logging_steps", "-3"),
        ("tune", "save_steps", "1.5"),
        ("tune", "learning_rate", "5e4"),
        ("generate", "temperature", "inf"),
        ("evaluate", "temperature", "nan"),
        ("evaluate", "seed", str(2**32)),
        ("constraints", "seeds", str(2**32)),
        ("latent-city", "seeds", "²"),
        ("probe feature_probe", "layers", "²"),
        ("prepare train_vocab", "vocab_size", str(2**53)),
    ],
)
def test_a_value_is_refused_by_its_flag(world, command, flag, word):
    for in_file in (False, True):
        assert f"--{flag} " in check_command(world, command, {flag: [word]}, in_file)


def test_a_traceback_a_stray_file_and_a_second_line_are_noticed(world, monkeypatch):
    def stray(folder):
        (world / "stray").write_text("x")
        raise Started

    def fail(folder):
        raise KeyError("x")

    monkeypatch.setattr(demo, "steps", stray)
    with pytest.raises(AssertionError, match="stray"):
        check_command(world, "demo", {})
    (world / "stray").unlink()
    monkeypatch.setattr(demo, "steps", fail)
    with pytest.raises(KeyError):
        check_command(world, "demo", {})
