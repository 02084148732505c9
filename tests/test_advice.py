"""Advice works where it is given: each flag that a message of a command names is a flag of that command.

The messages of a command are the texts of all functions and classes that its program reaches by name.  A flag after
`lm-trials COMMAND` is one of that command.
"""

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lm_trials import cli
from lm_trials.commands import cache as cache_program
from lm_trials.commands import prepare as prepare_program
from lm_trials.models import llama2c

REPOSITORY = Path(__file__).resolve().parents[1]
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9_]*)(?!\w)")
# A command's words and what follows, to where the sentence goes on.
COMMAND = re.compile(r"lm-trials ((?:[a-z][a-z0-9_-]* ?)*)([^;,)(]*)")
SUBCOMMANDS = {"prepare": prepare_program.COMMANDS, "cache": cache_program.COMMANDS, "llama2c": llama2c.COMMANDS}
COMMANDS = [
    *((name,) for name in cli.COMMANDS if name not in (*SUBCOMMANDS, "probe")),
    *(("probe", name) for name in cli.probes()),
    *((program, name) for program, commands in SUBCOMMANDS.items() for name in commands),
]
# What these commands read names the flags of another: a run those of its training, a recipe those of its entries, and a
# trial file has the flags of compare that select a table as keys, which the messages then name.
FLAGS_OF = {
    ("order",): ("train",),
    ("dashboard",): ("order",),
    ("probe", "saturation"): ("train",),
    ("cache", "recipe"): ("cache", "fetch"),
    ("cache",): ("cache", "fetch"),
}
FLAGS_OF |= {("report",): ("compare",), ("reproduce",): ("compare",)}
# Texts with flags that are not the command's own: (function, flag), and why.
EXCEPTIONS = {
    ("lm_trials.trials.effects.learning_curve", "--eval_strategy"): "of the training that the trial file has",
    ("lm_trials.trials.effects.learning_curve", "--dense_eval_steps"): "of the training that the trial file has",
    ("lm_trials.trials.slurm.SlurmArguments", "--executor"): "of run, which reproduce runs",
    ("lm_trials.trials.sweep_file._program", "--flag"): "any flag, in a sweep file",
    ("lm_trials.trials.contrasts._check_evaluated", "--dataset_name"): "of evaluate, in a trial file",
    ("lm_trials.dashboard.space.write_space", "--repo"): "of hf upload",
    ("lm_trials.evaluation.storytellers.Storyteller.room", "--max_new_tokens"): "the dashboard has a slider for it",
    ("lm_trials.evaluation.storytellers.open_storyteller", "--max_new_tokens"): "the dashboard has a slider for it",
    ("lm_trials.training.launch.check_launch", "--config_file"): "of accelerate launch",
    ("lm_trials.training.launch.check_launch", "--cpu"): "of accelerate launch",
    ("lm_trials.training.launch.check_launch", "--num_processes"): "of accelerate launch",
    ("lm_trials.tokens.sentencepiece_models._read_proto", "--model_type"): "of sentencepiece's trainer",
    ("lm_trials.training.session.finish", "--logdir"): "of tensorboard",
    ("lm_trials.commands.demo.main", "--data_cache_dir"): "it runs other commands with these words",
    ("lm_trials.training.plan.settle_length", "--max_train_tokens"): "only where --streaming was given, to train",
    ("lm_trials.tokens.tokenizers.load_tokenizer", "--vocab_size"): "only where --vocab_size was given",
    ("lm_trials.stories.corpora.ingest", "--split_by"): "only where --split_by was given",
    ("lm_trials.models.shapes.build_model", "--config_name"): "only train builds a model",
    ("lm_trials.models.shapes.build_model", "--config_overrides"): "only train builds a model",
    ("lm_trials.training.plan.settle_schedule", "--inject"): "of train, beside the flag of both",
    ("lm_trials.training.order_flags.check_covers", "--inject"): "of train, beside the flag of both",
    ("lm_trials.probing.durability.report.measure", "--append_eos"): "of train, which made the runs",
    ("lm_trials.stories.records.record_from_row", "--text_column"): "the others read no stories of other columns",
}

READ = (ast.Attribute, ast.Name, ast.Call, ast.JoinedStr, ast.Constant)


class Sources:
    """The functions, classes, methods and constants of modules, with the texts of each and the names that each uses."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.nodes: dict[str, list[ast.AST]] = {}  # the names, calls and texts in each
        self.methods: dict[str, dict[str, str]] = {}  # of each class, by their names
        self.names: dict[str, dict[str, str]] = {}  # in each module, what a name means
        self.module_of: dict[str, str] = {}
        for module, source in sources.items():
            names = self.names[module] = {}
            for node in ast.walk(tree := ast.parse(source)):
                if isinstance(node, ast.ImportFrom):
                    names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self._add(module, node.name, [node])
                elif isinstance(node, ast.ClassDef):
                    methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
                    rest = [inner for inner in node.body if inner not in methods and not _is_docstring(inner)]
                    self._add(module, node.name, [*node.bases, *node.decorator_list, *rest])
                    for method in methods:
                        self._add(module, f"{node.name}.{method.name}", [method])
                    of_class = {method.name: f"{module}.{node.name}.{method.name}" for method in methods}
                    self.methods[f"{module}.{node.name}"] = of_class
                elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                        for inner in ast.walk(target):
                            if isinstance(inner, ast.Name):
                                self._add(module, inner.id, [node.value])

    def _add(self, module: str, name: str, nodes: list[ast.AST]) -> None:
        inside = [inner for node in nodes for inner in _walk(node) if isinstance(inner, READ)]
        self.nodes[f"{module}.{name}"], self.module_of[f"{module}.{name}"] = inside, module
        self.names[module][name] = f"{module}.{name}"

    def reached(self, *start: str) -> set[str]:
        """Return what can be used from some functions: what is named, and methods of a named class by their names."""
        found, new, attributes = set(), set(start), set()
        while new:
            found |= new
            for key in new:
                attributes |= {node.attr for node in self.nodes[key] if isinstance(node, ast.Attribute)}
            named = {each for key in new for each in self._named(key)}
            classes = self.methods.keys() & (found | named)
            called = {
                method
                for each in classes
                for name, method in self.methods[each].items()
                if name in attributes or name.startswith("__")
            }
            new = (named | called) & self.nodes.keys() - found
        return found

    def _named(self, key: str) -> Iterator[str]:
        names = self.names[self.module_of[key]]
        for node in self.nodes[key]:
            if isinstance(node, ast.Name) and node.id in names:
                yield names[node.id]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                yield f"{names.get(node.value.id)}.{node.attr}"

    def texts(self, key: str) -> Iterator[str]:
        """Yield the texts of a function, class or constant: f-strings with {} for values, commands with their flags."""
        inside: set[ast.AST] = set()
        for node in self.nodes[key]:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "command_line":
                (program, *_), flags = node.args, [f"--{keyword.arg}" for keyword in node.keywords if keyword.arg]
                if isinstance(program, ast.Constant):
                    yield f"lm-trials {program.value} {' '.join(flags)}"
            if isinstance(node, ast.JoinedStr):
                inside |= set(node.values)
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
                yield node.value


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and what is in it, without docstrings, annotations and the helps of flags."""
    yield node
    for name, value in ast.iter_fields(node):
        for inner in value if isinstance(value, list) else [value]:
            is_help = isinstance(inner, ast.keyword) and inner.arg == "help"
            if isinstance(inner, ast.AST) and not (
                _is_docstring(inner) or is_help or name in ("annotation", "returns")
            ):
                yield from _walk(inner)


@pytest.fixture(scope="module")
def sources():
    files = {file: file.relative_to(REPOSITORY) for file in (REPOSITORY / "lm_trials").rglob("*.py")}
    names = {file: ".".join(path.with_suffix("").parts).removesuffix(".__init__") for file, path in files.items()}
    return Sources({name: file.read_text() for file, name in names.items()})


@cache
def help_of(command: tuple[str, ...]) -> str:
    """Return what a command prints about itself, with all its flags."""
    every = "--help_all" if command in (("train",), ("tune",), ("align",)) else "--help"
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        for more in [["--method", "dpo"], ["--method", "grpo"]] if command == ("align",) else [[]]:
            with contextlib.suppress(SystemExit):
                cli.main([*command, *more, every])
    return shown.getvalue()


@cache
def flags_of(command: tuple[str, ...]) -> frozenset[str]:
    """Return the flags of a command: those that its help lists."""
    lines = re.findall(r"^  (?:-\w, )?(--.*?)(?:  |$)|(--no_\w+)\s+for\s+False", help_of(command), flags=re.MULTILINE)
    own = {flag for line in lines for flag in FLAG.findall(" ".join(line))} | {"help"}
    return frozenset(own | (flags_of(FLAGS_OF[command]) if command in FLAGS_OF else set()))


def start_of(command: tuple[str, ...]) -> list[str]:
    """Return where the program of a command starts."""
    if command[0] in SUBCOMMANDS:
        return [f"{each.__module__}.{each.__name__}" for each in SUBCOMMANDS[command[0]][command[1]]]
    return [f"{cli.command_of(list(command))[0].__module__}.main"]


def commands_in(text: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield the commands that a text names, each with the flags after it."""
    for words, after in COMMAND.findall(text):
        first, *rest = words.split() or [""]
        known = cli.probes() if first == "probe" else SUBCOMMANDS.get(first, ())
        yield (first, *[word for word in rest[:1] if word in known]), FLAG.findall(after)


def wrong(command: tuple[str, ...], text: str) -> set[str]:
    """Return the flags and commands in a text of `command` that do not exist where they are named.

    A text that begins with a flag is about the value that was given to it.
    """
    text = " ".join(text.split())
    found = set()
    for named, flags in commands_in(text):
        if named[0] not in (*cli.COMMANDS, ""):
            found.add(f"lm-trials {named[0]}")
        elif named[0]:
            found |= {f"{' '.join(named)} --{flag}" for flag in flags if flag not in flags_of(named)}
    subject = FLAG.match(text)
    own = {flag for flag in FLAG.findall(COMMAND.sub("", text)) if flag not in flags_of(command)}
    return found | {f"--{flag}" for flag in own - ({subject[1]} if subject else set())}


@pytest.fixture(scope="module")
def found(sources):
    """What is wrong in each command, with the function that says it; in its help, without one."""
    found, texts = {}, {key: list(sources.texts(key)) for key in sources.nodes}
    for command in COMMANDS:
        # The functions of `flags` speak of any flag.
        reached = [key for key in sources.reached(*start_of(command)) if not key.startswith("lm_trials.flags.")]
        found[command] = {(key, name) for key in reached for text in texts[key] for name in wrong(command, text)}
        lines = help_of(command).replace("[--flag value ...]", "").replace("\\\n", " ").splitlines()
        names = {name for line in lines if "accelerate" not in line for name in wrong(command, line)}
        found[command] |= {("", name) for name in names}
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_flag_that_a_command_names_is_one_of_its_own(found, command):
    assert found[command] - EXCEPTIONS.keys() == set()


def test_each_exception_is_needed(found):
    assert EXCEPTIONS.keys() - set().union(*found.values()) == set()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("it has no train split; name one with --dataset_split", {"--dataset_split"}),
        ("name the text between its stories with --text_separator", {"--text_separator"}),
        ("make it with lm-trials prepare download --dataset_split test", {"prepare download --dataset_split"}),
        ("make it with lm-trials ingest --source x", {"lm-trials ingest"}),
        ("make it with lm-trials prepare ingest --source x; give --sourec", {"--sourec"}),
        ("lm-trials cache --num_prok 3", {"cache --num_prok"}),
        ("make it with lm-trials prepare ingest --dataset_split test, or give --block_size 8", set()),
        ("--dataset_split {} does not exist", set()),
        ("lm-trials cache --num_proc 3", set()),
    ],
)
def test_wrong_advice_is_seen(text, names):
    assert wrong(("train",), text) == names


def test_what_a_program_reaches_is_what_it_names():
    sources = Sources(
        {
            "a": "from b import Reader, helped as h, LINE\ndef main():\n    h(Reader().read())\n    LINE",
            "b": "LINE = '--line'\n"
            "class Reader:\n    def read(self):\n        '--doc'\n        return f'--read {1}'\n"
            "    def write(self):\n        return '--write'\n"
            "def helped(path: other):\n    command_line('cache list', json=1)\ndef other():\n    return '--other'",
        }
    )
    reached = sources.reached("a.main")
    assert reached == {"a.main", "b.Reader", "b.Reader.read", "b.helped", "b.LINE"}
    texts = {text for key in reached for text in sources.texts(key)}
    assert texts == {"--line", "--read {}", "lm-trials cache list --json", "cache list"}
