"""The pages are true: each command parses, each link and import exists, and the language is plain."""

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import pytest

from lm_trials.cli import COMMANDS, command_of, probes
from lm_trials.console import UsageError
from lm_trials.flags import ParsedError, parse_arguments, parsing_only
from lm_trials.probing.flags import MODEL

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
COMING_FROM = REPOSITORY / "docs" / "coming_from"
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "probes" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "results").glob("*.md")),
]
MAX_README_LINES = 150
SCRIPTS = {
    "train_gpt2.py": "train",
    "sft_lora.py": "tune",
    "align_lora.py": "align",
    "eval_checkpoint.py": "evaluate",
    "prepare_tinystories.py": "prepare",
    "cache_datasets.py": "cache",
}
PLAIN = {"hf", "git", "wandb", "cd", "tensorboard", "export", "pip", "pre-commit"}
# Phrases that are not plain (the left column of the project's style guide, shortened to what would be repeated).
NOT_PLAIN = """
    who is who | keeps the house | gone on with | A GPU, several | nothing is shown about the recipe
    and less than taking no directions at all | the seeds read | told and is no outcome | did not come to an end
    nothing is half-written | goes on or begins anew | is no flag here | leave it away | away one of them
    nothing was told of | of whoever says | whole or not at all | that would tell of a chosen part
""".replace("\n", "|").split("|")


def command_lines(page: Path) -> list[str]:
    """Return the command lines of a page: of its `bash` blocks, continued lines joined, and of its text."""
    text = page.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    # Pages for who comes from another system quote its commands beside ours.
    ours = "lm-trials" if page.is_relative_to(COMING_FROM) else "make|python|lm-trials"
    inline = re.findall(rf"`((?:{ours}) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")] + inline


LINES = [(str(page.relative_to(REPOSITORY)), line) for page in PAGES for line in command_lines(page)]


def parse_command(words: list[str]) -> None:
    """Parse the flags of an `lm-trials` command as it would itself; raises where it would refuse them."""
    program, rest = command_of(words)
    module = program.__module__
    if not rest or "--help" in rest:  # the text may name a command alone
        return
    if module.endswith(".probe"):
        flags = importlib.import_module(module.removesuffix("probe") + "flags")
        kinds = get_type_hints(flags.check_arguments).values()
        flags.check_arguments(
            *(given for given in parse_arguments(rest, flags.ARGUMENTS, "", first=MODEL) if type(given) in kinds)
        )
    else:
        with parsing_only(), pytest.raises(ParsedError):
            inspect.unwrap(program)(rest)


def script_command(script: str) -> list[str]:
    """Return the words of the `lm-trials` command that a script is."""
    assert (REPOSITORY / script).is_file(), script
    if script.startswith("probes/"):
        return ["probe", Path(script).stem]
    return [SCRIPTS[script]]


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
    elif command == "lm-trials":
        if rest and rest not in (["COMMAND", "--help"], ["probe"], ["probe", "NAME"]):  # as the text speaks of them
            parse_command(rest)
    elif command == "accelerate":
        config = rest[rest.index("--config_file") + 1]
        assert (REPOSITORY / config).is_file(), line
        if "-m" in rest:
            at = rest.index("-m") + 1
            assert rest[at] == "lm_trials.cli", line
            parse_command(rest[at + 1 :])
        else:
            at = next(place for place, word in enumerate(rest) if word.endswith(".py"))
            parse_command([*script_command(rest[at]), *rest[at + 1 :]])
    elif command == "python" and rest[0] == "-m":
        assert hasattr(importlib.import_module(rest[1]), "main"), line
    elif command == "python" and rest[0].startswith("benchmarks/"):
        assert (REPOSITORY / rest[0]).is_file(), line
    elif command == "python":
        parse_command([*script_command(rest[0]), *rest[1:]])
    else:
        assert command in PLAIN, f"{line}: nothing is known of {command}"


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line}"[:70] for page, line in LINES])
def test_a_command_line_parses(page, line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # configuration files are named from here
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "make tset",
        "python train_gpt3.py",
        "python train_gpt2.py --learning_rat 1",
        "python probes/lense.py",
        "python probes/diversity.py --num_batches 1",
        "python benchmarks/nothing.py",
        "python -m lm_trials.training.order runs/a",
        "accelerate launch --config_file nowhere.yaml train_gpt2.py",
        "accelerate launch --config_file accelerate_configs/cpu.yaml train_gpt2.py --seeed 1",
        "accelerate launch --config_file accelerate_configs/cpu.yaml -m lm_trials.cli train --seeed 1",
        "lm-trials trian",
        "lm-trials train --config dmeo",
        "lm-trials train --config diversity_demo --arm nothing",
        "lm-trials tune --lora_rank 4",
        "lm-trials evaluate --model_name_or_path a --by",
        "lm-trials prepare bake",
        "lm-trials prepare generate --num_stories 1",
        "lm-trials cache --dataset_nam x",
        "lm-trials generate --temperature hot",
        "lm-trials constraints --modle a",
        "lm-trials latent-city --modle a",
        "lm-trials compare runs/a --tabel b.csv",
        "lm-trials power --difference 0 --spread 1",
        "lm-trials order runs/a --stpe 1",
        "lm-trials demo --folder a",
        "lm-trials probe lense",
        "lm-trials probe lens --layer 1",
        "run_everything --now",
    ],
)
def test_a_wrong_command_line_is_seen(line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises((AssertionError, ValueError, KeyError, ModuleNotFoundError, UsageError)):
        check(line)


def test_a_script_is_the_program_of_its_command():
    scripts = {**SCRIPTS, **{f"probes/{name}.py": name for name in probes()}}
    for script in scripts:
        (module,) = re.findall(r"^from (\S+) import main$", (REPOSITORY / script).read_text(), flags=re.MULTILINE)
        program, _ = command_of(script_command(script))
        assert program.__module__ == module, script


def test_each_command_and_each_probe_has_its_place_in_the_pages():
    found = {tuple(words[1:]) for _, line in LINES if (words := shlex.split(line, comments=True))[0] == "lm-trials"}
    named = {words[0] for words in found if words}
    assert named >= set(COMMANDS)
    assert {words[1] for words in found if words[:1] == ("probe",) and len(words) > 1} >= set(probes())
    assert "bake" not in named


def test_readme_is_short_and_has_the_make_commands_and_the_jobs():
    text = README.read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    lines = command_lines(README)
    assert {"make demo", "make quick", "make test"} <= set(lines)
    jobs = [shlex.split(line)[1] for line in lines if line.startswith("lm-trials ")]
    assert jobs == ["train", "tune", "evaluate", "compare", "probe", "new", "plan", "run", "report"]


def not_plain(text: str) -> list[str]:
    """Return the phrases of a text that are not plain, lines joined."""
    joined = " ".join(text.split())
    return [phrase.strip() for phrase in NOT_PLAIN if phrase.strip() and phrase.strip() in joined]


def test_the_pages_are_in_plain_words():
    found = {page.name: phrases for page in PAGES if (phrases := not_plain(page.read_text()))}
    assert found == {}
    assert not_plain("An adapter is loaded whole\nor not at all.") == ["whole or not at all"]
    assert not_plain("An adapter is loaded atomically.") == []


def test_what_the_pages_import_is_there():
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for module, names in re.findall(r"^from (lm_trials\S*) import (.+)$", block, flags=re.MULTILINE):
                for name in names.split(", "):
                    found = hasattr(importlib.import_module(module), name) or find_spec(f"{module}.{name}")
                    assert found, f"{page.name}: {module} has no {name}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page: Path, text: str) -> list[str]:
    """Return the links of a text on a page that lead to no file or no heading."""
    dead = []
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        place = page.parent / target if target else page
        if target.startswith("http"):
            continue
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(f"{target}#{anchor}")
    return dead


def test_each_link_in_the_pages_leads_somewhere():
    for page in [*PAGES, REPOSITORY / "CHANGELOG.md"]:
        assert dead_links(page, page.read_text()) == [], page.name
    assert dead_links(README, "[a](nowhere.md) [b](docs/data.md#nowhere) [c](docs/data.md#protocols)") == [
        "nowhere.md#",
        "docs/data.md#nowhere",
    ]


def test_each_page_is_in_the_navigation_of_the_site():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    for folder, prefix in ((REPOSITORY / "docs", ""), (REPOSITORY / "results", "results/")):
        for page in folder.rglob("*.md"):
            assert f" {prefix}{page.relative_to(folder)}\n" in navigation, page


def test_the_site_builds_and_each_page_has_a_place_of_its_own(tmp_path):
    """A results page and the folder of its trial have nearly the same name."""
    pytest.importorskip("mkdocs", reason="the site is built with the extra docs alone")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    pages = re.findall(r"[\w/]+\.md", (REPOSITORY / "mkdocs.yml").read_text().partition("nav:")[2])
    places = [page.replace("README.md", "index.md").replace(".md", ".html") for page in pages]
    titles = {re.search("<title>(.*?)</title>", (tmp_path / "site" / place).read_text())[1] for place in places}
    assert len(titles) == len(places)


def test_the_map_names_every_top_level_entry():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY, check=False).stdout
    if not tracked:
        pytest.skip("not a git checkout: there is no list of files to compare with")
    architecture = (REPOSITORY / "docs" / "architecture.md").read_text()
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".") and name not in architecture} == set()
