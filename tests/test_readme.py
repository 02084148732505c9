"""README and the guides say what is true: each command line parses, each path exists, the tree is the tree."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "probes" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
# Where a module's flags are: a function that parses them, or a class of them.
MODULE_FLAGS = {
    "lm_trials.evaluation.generate": ("lm_trials.evaluation.generate", "GenerationArguments"),
    "lm_trials.evaluation.constraints": ("lm_trials.evaluation.constraint_flags", "ConstraintArguments"),
    "lm_trials.latent_city.evaluate": ("lm_trials.latent_city.flags", "LatentCityArguments"),
    "lm_trials.training.data_order": ("lm_trials.training.data_order", "order_arguments"),
    "lm_trials.trials.compare": ("lm_trials.trials.compare", "compare_arguments"),
}
PLAIN = {"hf", "git", "cd", "tensorboard", "export", "pip"}


def command_lines(page: Path) -> list[str]:
    """Return the command lines of a page: of its `bash` blocks, continued lines joined, and of its text."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:make|python) [^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")] + inline


COMMANDS = [(str(page.relative_to(REPOSITORY)), line) for page in PAGES for line in command_lines(page)]


def parse_script(script: str, argv: list[str]) -> None:
    """Parse the flags of one script as it would itself; raises where it would refuse them."""
    from lm_trials.flags import parse_arguments

    if script == "train_gpt2.py":
        from lm_trials.training.flags import CommonTrainingArguments, DataArguments, ModelArguments
        from lm_trials.training.run_arguments import RunArguments

        parse_arguments(argv, (DataArguments, ModelArguments), "", CommonTrainingArguments, lambda: RunArguments)
    elif script == "sft_lora.py":
        from lm_trials.training.tuning_flags import AdapterArguments, CommonSftArguments, PairArguments
        from lm_trials.training.tuning_run_arguments import SftRunArguments

        parse_arguments(argv, (PairArguments, AdapterArguments), "", CommonSftArguments, lambda: SftRunArguments)
    elif script == "eval_checkpoint.py":
        from lm_trials.evaluation.flags import EvaluationArguments

        parse_arguments(argv, (EvaluationArguments,), "")
    elif script == "prepare_tinystories.py":
        from lm_trials.commands import prepare

        command, *rest = argv
        prepare.command_arguments(command, rest)
    elif script == "cache_datasets.py":
        from lm_trials.commands import cache

        cache.command_arguments(argv)
    elif script.startswith("probes/"):
        flags = importlib.import_module(f"lm_trials.probing.{Path(script).stem}.flags")
        flags.check_arguments(*parse_arguments(argv, flags.ARGUMENTS, ""))
    else:
        raise AssertionError(f"no parser is known for {script}")


def check(line: str) -> None:
    """Take a command line as far as its flags, files and targets."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment variables before the command
        words = words[1:]
    command, *rest = words
    if command == "make":
        rules = re.findall(r"^([\w./ ]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
        targets = " ".join(rules).split()
        assert all(target in targets for target in rest if "=" not in target), line
    elif command == "accelerate":
        at = next(place for place, word in enumerate(rest) if word.endswith(".py"))
        config = rest[rest.index("--config_file") + 1]
        assert (REPOSITORY / config).is_file(), line
        parse_script(rest[at], rest[at + 1 :])
    elif command in ("python", ".venv/bin/python") and rest[0] == "-m":
        assert hasattr(importlib.import_module(rest[1]), "main"), line
        place, name = MODULE_FLAGS[rest[1]]
        flags = getattr(importlib.import_module(place), name)
        if isinstance(flags, type):
            from lm_trials.flags import parse_arguments

            parse_arguments(rest[2:], (flags,), "")
        elif rest[2:]:  # the text may name a module alone
            flags(rest[2:])
    elif command in ("python", ".venv/bin/python"):
        script = rest[0]
        assert (REPOSITORY / script).is_file(), line
        if "/" not in script or script.startswith("probes/"):
            parse_script(script, rest[1:])
    else:
        assert command in PLAIN, f"{line}: nothing is known of {command}"


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}"[:70] for page, line in COMMANDS])
def test_a_command_line_parses(page, line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # configuration files are named from here
    check(line)


def test_readme_has_the_three_commands():
    lines = [line for page, line in COMMANDS if page == "README.md"]
    assert {"make demo", "make quick", "make test"} <= {line.split("#")[0].strip() for line in lines}
    assert len(lines) > 10


@pytest.mark.parametrize(
    "line",
    [
        "make tset",
        "python train_gpt3.py",
        "python train_gpt2.py --learning_rat 1",
        "python prepare_tinystories.py bake",
        "python cache_datasets.py --dataset_nam x",
        "python eval_checkpoint.py --model_dir a --by",
        "python sft_lora.py --lora_rank 4",
        "python -m lm_trials.latent_city.evaluate --modle a",
        "python -m lm_trials.training.order runs/a",
        "python -m lm_trials.trials.compare runs/a --tabel b.csv",
        "python probes/diversity.py --num_batches 1",
        "accelerate launch --config_file nowhere.yaml train_gpt2.py",
        "run_everything --now",
    ],
)
def test_a_wrong_command_line_is_seen(line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises((AssertionError, ValueError, KeyError, ModuleNotFoundError)):
        check(line)


def test_what_the_pages_import_is_there():
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for module, names in re.findall(r"^from (lm_trials\S*) import (.+)$", block, flags=re.MULTILINE):
                assert all(hasattr(importlib.import_module(module), name) for name in names.split(", ")), page.name


def test_each_link_in_the_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tree_names_every_top_level_entry():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY, check=False).stdout
    if not tracked:
        pytest.skip("not a git checkout: there is no list of files to compare with")
    readme = (REPOSITORY / "README.md").read_text()
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".") and name not in readme} == set()
