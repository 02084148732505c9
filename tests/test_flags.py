"""Flags, and config files that are checked like flags."""

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from lm_trials.console import UsageError
from lm_trials.flags import option, parse_arguments


@dataclass
class Own:
    """Flags of each kind."""

    learning_rate: float = option(0.1, help="Rate.")
    shift: float = option(0.0, finite=False, help="A number that may be negative.")
    steps: int = option(10, help="Updates. Default: ten.")
    color: Literal["red", "green"] = option("red", help="One of two.")
    save: str = option("steps", help="no, steps or epoch.")
    model_name_or_path: list[str] = option([], aliases=["--model_dir"], help="Models.")
    shifts: list[float] = option([1.0], help="Numbers.")
    shuffle: bool = option(True, help="In random order.")
    quiet: bool = option(False, help="Say less.")
    closing: bool | None = option(None, help="Yes, no, or as it was.")
    run_name: str | None = option(None, help="Name.")


@dataclass
class Common:
    """What --help shows of the class below."""

    often: int = option(1, help="Often used.")


@dataclass
class Full:
    """Stands for TrainingArguments."""

    often: int = field(default=1, metadata={"help": "Often used."})
    seldom: int = field(default=2, metadata={"help": "Seldom used."})

    def __post_init__(self):
        if self.seldom < 0:
            raise ValueError("seldom must not be\nnegative")


def parse(*argv):
    (args,) = parse_arguments(argv, (Own,), "A script.")
    return args


def refusal(*argv, **options):
    with pytest.raises(UsageError) as raised:
        parse_arguments(argv, (Own,), "A script.", **options)
    return " ".join(str(raised.value).split())


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "flags.yaml"
        path.write_text(text)
        return f"--config={path}"

    return write


# The command line


def test_without_flags_there_are_the_defaults_and_lists_are_not_shared():
    assert parse() == Own()
    parse().model_name_or_path.append("changed")
    assert parse().model_name_or_path == []


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--learning_rate", "3e-4"], "learning_rate", 3e-4),
        (["--learning-rate=3e-4"], "learning_rate", 3e-4),
        (["--shift", "-1"], "shift", -1.0),
        (["--shift", "-1e-3"], "shift", -1e-3),  # argparse alone takes this for a flag
        (["--shift=-.5"], "shift", -0.5),
        (["--shift", "-inf"], "shift", float("-inf")),
        (["--steps", "1", "--steps", "2"], "steps", 2),
        (["--color", "green"], "color", "green"),
        (["--model_dir", "a", "b"], "model_name_or_path", ["a", "b"]),
        (["--model_dir", "a", "--steps", "3", "--model-dir=b"], "model_name_or_path", ["a", "b"]),
        (["--model_name_or_path", "a", "--model-name-or-path", "b"], "model_name_or_path", ["a", "b"]),
        (["--shifts", "-1", "2"], "shifts", [-1.0, 2.0]),
        (["--shuffle", "False"], "shuffle", False),
        (["--no_shuffle"], "shuffle", False),
        (["--no-shuffle"], "shuffle", False),
        (["--shuffle"], "shuffle", True),
        (["--quiet"], "quiet", True),
        (["--quiet", "true"], "quiet", True),
        (["--closing", "no"], "closing", False),
        (["--run_name", "--weird-name"], "run_name", None),
        (["--run_name=--weird-name"], "run_name", "--weird-name"),
    ],
)
def test_a_flag_is_read(argv, field, value):
    if value is None:
        assert "run_name: expected one argument" in refusal(*argv)
    else:
        assert getattr(parse(*argv), field) == value


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--learning_rat", "1"], "--learning_rat is no flag here; did you mean --learning_rate?"),
        (["--learning-rat=1"], "--learning-rat=1 is no flag here; did you mean --learning_rate?"),
        (["--zzz"], "--zzz is no flag here; --help lists them"),
        (["--learning", "1"], "--learning is no flag here"),  # no abbreviations: a later flag would change them
        (["stray"], "stray is no flag here"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--steps", "1.5"], "argument --steps: invalid int value: '1.5'"),
        (["--color", "blue"], "argument --color: invalid choice: 'blue' (choose from 'red', 'green')"),
        (["--quiet", "perhaps"], "argument --quiet: perhaps is not a boolean; give True or False"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--config"], "--config needs a file; give --config FILE.yaml"),
        (["--config", "--steps", "1"], "--config needs a file"),
        (["--config", "a", "--config=b"], "--config is given twice"),
        (["--config", "no/such.yaml"], "--config no/such.yaml: it cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_is_named(argv, text):
    assert text in refusal(*argv)


# Config files


def test_a_config_file_holds_flags_and_the_command_line_wins(config):
    file = config(
        "learning_rate: 3e-4\nsteps: 7\ncolor: green\nmodel_dir: [a, b]\nshuffle: false\nshift: -2\nrun-name: x\n"
        "closing: null\nshifts: [-1.5, 2]\n"
    )
    args = parse(file)
    assert args.learning_rate == 3e-4  # YAML itself reads 3e-4 as a string
    assert (args.steps, args.color, args.shuffle, args.shift, args.run_name) == (7, "green", False, -2.0, "x")
    assert (args.model_name_or_path, args.closing) == (["a", "b"], None)
    assert args.shifts == [-1.5, 2.0]
    args = parse("--steps", "8", file, "--model_dir", "c", "--shuffle", "True")
    assert (args.steps, args.model_name_or_path, args.shuffle) == (8, ["c"], True)
    assert args.learning_rate == 3e-4


def test_no_and_off_stay_words_and_false_is_a_boolean(config):
    """YAML 1.1 makes False of `save_strategy: no`."""
    assert parse(config("save: no\nquiet: on\nshuffle: off\n")) == Own(save="no", quiet=True, shuffle=False)
    assert parse(config("save: false\nquiet: true\n")) == Own(save="False", quiet=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "learning_rat is no flag; did you mean learning_rate?"),
        ("help: 1\n", "help is no flag"),
        ("config: other.yaml\n", "config is no flag"),
        ("learning_rate: fast\n", "argument --learning_rate: invalid float value: 'fast'"),
        ("color: revesred\n", "argument --color: invalid choice: 'revesred' (choose from 'red', 'green')"),
        ("steps: [1, 2]\n", "steps is given a list [1, 2]; it takes one value"),
        ("no_shuffle: true\n", "no_shuffle takes no value; write `shuffle: false`"),
        ("steps: 1\nsteps: 2\n", "steps is given twice; keep one"),
        ("steps: {a: \n", "it is no YAML"),
        ("- steps\n", "it holds list; it must hold `flag: value` lines"),
        ("", "it holds NoneType"),
    ],
)
def test_a_mistake_in_a_config_file_is_named_with_the_file(config, text, message):
    file = config(text)
    assert refusal(file).startswith(f"--config {file.removeprefix('--config=')}: {message}")


def test_a_config_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "flags.yaml").write_bytes(b"steps: \xff")
    assert "it is no YAML" in refusal("--config", str(tmp_path / "flags.yaml"))
    assert "it cannot be read" in refusal("--config", str(tmp_path))


def test_a_mapping_becomes_json(config):
    args = parse(config("run_name: {a: [1, b]}\n"))
    assert args.run_name == '{"a": [1, "b"]}'


# Two classes, and help


def test_the_full_class_is_loaded_to_parse_and_not_for_help(capsys):
    def never():
        raise AssertionError("--help must not load it")

    own, full = parse_arguments(["--seldom", "5", "--steps", "3"], (Own,), "", common=Common, full=lambda: Full)
    assert (own.steps, full.seldom) == (3, 5)
    with pytest.raises(SystemExit) as left:
        parse_arguments(["--help"], (Own,), "A script:\n\n    python it.py\n", common=Common, full=never)
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "A script:\n\n    python it.py\n" in shown
    assert re.search(r"--often OFTEN\s+Often used. \[1\]", shown)
    assert "--seldom" not in shown
    assert "--help_all" in shown


def test_help_all_shows_everything(capsys):
    with pytest.raises(SystemExit) as left:
        parse_arguments(["--help_all"], (Own,), "", common=Common, full=lambda: Full)
    assert left.value.code == 0
    assert "--seldom" in capsys.readouterr().out


def test_help_says_each_default_once_and_each_flag_in_one_spelling(capsys):
    with pytest.raises(SystemExit):
        parse("-h")
    shown = capsys.readouterr().out
    assert re.search(r"Rate. \[0\.1\]", shown)
    assert re.search(r"Updates. Default: ten.\n", shown)
    assert re.search(r"In random order. \[True\]", shown)
    assert "--learning-rate" not in shown
    assert "--model_dir" in shown
    assert "[None]" not in shown


def test_what_a_class_itself_refuses_is_one_line():
    message = refusal("--seldom", "-3", common=Common, full=lambda: Full)
    assert message == "seldom must not be negative"


@pytest.fixture
def arms(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text("steps: 7\narms:\n  low: {learning_rate: 0.2}\n  high: {learning_rate: 0.3, steps: 8}\n")
    return str(path)


def test_an_arm_of_a_config_file_is_chosen_by_its_name(arms):
    assert (parse("--config", arms, "--arm", "low").learning_rate, parse("--config", arms, "--arm=low").steps) == (
        0.2,
        7,
    )
    assert (parse("--config", arms, "--arm", "high").learning_rate, parse("--config", arms, "--arm=high").steps) == (
        0.3,
        8,
    )
    assert parse("--config", arms, "--arm", "high", "--steps", "9").steps == 9


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "it holds the arms of a trial; choose one with --arm: low, high"),
        (("--arm", "hihg"), "--arm hihg: did you mean high?"),
        (("--arm",), "--arm needs a name"),
        (("--arm", "low", "--arm", "high"), "--arm is given twice (low and another)"),
    ],
)
def test_a_mistake_with_arms_is_named(arms, argv, said):
    assert said in refusal("--config", arms, *argv)


def test_an_arm_without_a_file_that_has_it_is_named(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text("steps: 7\n")
    assert "it has no arms, so there is no --arm low" in refusal("--config", str(path), "--arm", "low")
    assert "--arm low names an arm of a config file" in refusal("--arm", "low")
    path.write_text("arms: [low]\n")
    assert "its arms are no names" in refusal("--config", str(path), "--arm", "low")
