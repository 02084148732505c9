"""Flags, and config files that are checked like flags."""

import importlib
import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.flags import Check, option, parse_arguments, parse_mapping

REPOSITORY = Path(__file__).parent.parent


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
        (["--learning_rat", "1"], "unrecognized flag --learning_rat; did you mean --learning_rate?"),
        (["--learning-rat=1"], "unrecognized flag --learning-rat=1; did you mean --learning_rate?"),
        (["--zzz"], "unrecognized flag --zzz; --help lists them"),
        (["--learning", "1"], "unrecognized flag --learning"),  # no abbreviations: a later flag would change them
        (["stray"], "stray has no flag before it; give --"),
        (["\u2014-steps", "1"], "\u2014-steps begins with '\u2014' instead of two hyphens; type --steps"),
        (["\u2013steps=1"], "type --steps=1"),
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


@pytest.mark.parametrize("value", ["~/runs/a b", "~/", "~", "~other/x", "a/~/x", "x~"])
def test_the_users_folder_is_found_where_the_shell_leaves_it_to_us(config, monkeypatch, value):
    monkeypatch.setenv("HOME", "/home/me")
    wanted = value.replace("~/", "/home/me/") if value.startswith("~/") else value
    assert parse(f"--run_name={value}").run_name == wanted
    assert parse(config(f"run_name: '{value}'")).run_name == wanted


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
        ("learning_rat: 1\n", "unrecognized flag learning_rat; did you mean learning_rate?"),
        ("help: 1\n", "unrecognized flag help"),
        ("config: other.yaml\n", "unrecognized flag config"),
        ("learning_rate: fast\n", "argument --learning_rate: invalid float value: 'fast'"),
        ("color: revesred\n", "argument --color: invalid choice: 'revesred' (choose from 'red', 'green')"),
        ("steps: [1, 2]\n", "steps is given a list [1, 2]; it takes one value"),
        ("no_shuffle: true\n", "no_shuffle takes no value; write `shuffle: false`"),
        ("steps: 1\nsteps: 2\n", "line 2: steps is given twice; keep one"),
        ("steps: {a: \n", "it is not YAML (line 2: "),
        ("color: red\n\tsteps: 1\n", "it is not YAML (line 2: found character"),
        ("color: red\nsteps 1\n", "it is not YAML (line 3: could not find expected"),
        ("# a\nsteps: *b\n", "it is not YAML (line 2: found undefined alias"),
        ("color: 'red\n", "it is not YAML (line 2: found unexpected end of stream"),
        ("- steps\n", "it contains list; write `flag: value` lines"),
        ("", "it is empty; write `flag: value` lines"),
        ("# steps: 1\n---\n", "it is empty"),
    ],
)
def test_a_mistake_in_a_config_file_is_named_with_the_file(config, text, message):
    file = config(text)
    assert refusal(file).startswith(f"--config {file.removeprefix('--config=')}: {message}")


def test_a_config_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "flags.yaml").write_bytes(b"steps: \xff")
    assert "it is not YAML" in refusal("--config", str(tmp_path / "flags.yaml"))
    assert "it cannot be read" in refusal("--config", str(tmp_path))


@pytest.mark.parametrize(
    "word",
    ["2024_01", "007", "1.10", "12:30", "0x1F", "1_000", "2024-01-02", "2024-13-45", "-0", "+1", ".5", "1e3", "010"],
)
def test_a_word_that_yaml_takes_for_another_number_or_a_date_stays_as_it_is_written(config, word):
    assert parse(config(f"run_name: {word}\nmodel_name_or_path: [{word}]\n")) == parse(
        f"--run_name={word}", "--model_name_or_path", word
    )


def test_a_number_stays_a_number(config):
    args = parse(config("steps: 1_000\nshift: -1.50e+1\nrun_name: {a: 1_0, b: [.5, 010]}\n"))
    assert (args.steps, args.shift, args.run_name) == (1000, -15.0, '{"a": 10, "b": [0.5, 8]}')


@pytest.mark.parametrize(
    "value",
    ["0x_", "!!int x", "!!float x", "!!bool x", "!!timestamp x", "9" * 5000, "[" * 3000, "!!python/name:os.system"],
)
def test_a_value_that_yaml_cannot_read_is_one_line(config, value):
    message = refusal(config(f"run_name: {value}"))
    assert "it is not YAML (" in message
    assert "\n" not in message


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
        parse_arguments(["--help"], (Own,), "A script:\n\n    python it.py\n\nMore.", common=Common, full=never)
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "A script:\n\n    python it.py\n\nMore." in shown
    assert re.search(r"--often N\s+Often used. \[1\]", shown)
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
    assert re.search(r"In random order. \[True; --no_shuffle for\s+False\]", shown)
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
        ((), "it contains the arms of a trial; choose one with --arm: low, high"),
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
    assert "`arms` must contain names" in refusal("--config", str(path), "--arm", "low")


# Checks that flags declare


@dataclass
class Checked:
    """Flags with each kind of check."""

    seeds: int = option(5, least=2, why="an interval needs two seeds", help="Seeds.")
    share: float | None = option(None, above=0, most=1, help="Share.")
    below: float = option(0.0, least=-1, below=0.5, help="Number.")
    controls: int = option(0, least=3, unless=0, help="Controls.")
    sizes: list[int] = option([1], least=1, distinct=True, filled=True, help="Sizes.")
    words: list[str] = option([], one_of=("cat", "dog"), help="Words.")
    text: str | None = option(None, filled=True, help="Text.")
    corpus_name: str | None = option(None, folder_name=True, help="Name.")
    every: float = option(10, above=0, whole=True, help="Updates, or their share.")
    merge: str | None = option(None, needs="rank", not_with=("eight", "four"), help="Folder.")
    rank: int | None = option(None, help="Rank.")
    eight: bool = option(False, not_with="four", why="weights have one format", help="8 bits.")
    four: bool = option(False, help="4 bits.")
    judge: Literal["rules", "model", "people"] = option("rules", needs={"model": ("corpus", "eight")}, help="Judge.")
    corpus: str | None = option(None, help="Corpus.")


@dataclass
class Demanding:
    """A flag that must be given."""

    model: list[str] = option([], required="RUN_OR_MODEL", help="Models.")


def check_refusal(*argv, kind=Checked):
    with pytest.raises(UsageError) as raised:
        parse_arguments(argv, (kind,), "")
    with pytest.raises(UsageError) as again:  # a mapping, as of a recipe, is checked too
        parse_mapping(mapping_of(argv), kind)
    assert str(again.value) == str(raised.value)
    return str(raised.value)


def mapping_of(argv):
    found = {}
    for word in argv:
        if word.startswith("--"):
            name, found[name] = word[2:], []
        else:
            found[name].append(word)
    return {name: values if len(values) > 1 else values[0] if values else True for name, values in found.items()}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--seeds 1", "--seeds 1 must be at least 2 (an interval needs two seeds)"),
        ("--share 0", "--share 0 must be above 0 and at most 1"),
        ("--share 1.5", "--share 1.5 must be above 0 and at most 1"),
        ("--share nan", "--share nan must be a finite number"),
        ("--share inf", "--share inf must be a finite number"),
        ("--below 0.5", "--below 0.5 must be at least -1 and below 0.5"),
        ("--controls 2", "--controls 2 must be at least 3, or 0"),
        ("--sizes 3 0", "--sizes 0 must be at least 1"),
        ("--sizes 3 3", "--sizes 3 is given twice; give each value once"),
        ("--words cat dig", "--words dig: did you mean dog? valid: cat, dog"),
        ("--corpus_name ../x", "--corpus_name '../x' is not a plain name: it contains '/'; give one such as stories"),
        ("--text a\0b", "--text 'a\\x00b' contains '\\x00', which is not text; remove it"),
        ("--text \udcff", "--text '\\udcff' contains '\\udcff', which is not text; remove it"),
        (f"--seeds {2**53 + 1}", f"--seeds {2**53 + 1} is too large; whole numbers go up to {2**53}"),
        (f"--seeds {10**400}", f"--seeds {10**400} is too large; whole numbers go up to {2**53}"),
        (f"--rank -{10**400}", f"--rank -{10**400} is too large; whole numbers go up to {2**53}"),
        ("--share 1e400", "--share inf must be a finite number"),
        ("--every 0", "--every 0 must be above 0"),
        ("--every 1.5", "--every 1.5 must be a whole number, or a share below 1"),
        ("--merge out", "--merge out needs --rank"),
        ("--merge out --rank 0 --four", "--merge out and --four cannot be combined; remove one of them"),
        ("--eight --four", "--eight and --four cannot be combined (weights have one format); remove one of them"),
        ("--judge model", "--judge model needs --corpus or --eight"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(argv, message):
    assert check_refusal(*argv.split()) == message


def test_a_script_with_windows_line_ends_is_named():
    wanted = "--text 'a\\r' ends with a Windows line end; run dos2unix on the script"
    assert check_refusal("--text", "a\r") == wanted
    parse_arguments(["--text", "a\r\n"], (Checked,), "")


def test_an_empty_value_is_named():
    assert check_refusal("--text", " ") == "--text must not be empty; give a value, or omit the flag"
    for argv in ((), ("--model", "")):
        message = check_refusal(*argv, kind=Demanding)
        assert message == "--model is missing; give --model RUN_OR_MODEL"
    assert parse_arguments(["--model", "a"], (Demanding,), "")[0].model == ["a"]


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "--share None",
        "--corpus_name a.b",
        f"--seeds {2**53}",
        "--every 0.5",
        "--every 2.0",
        "--controls 0",
        "--controls 3",
        "--words cat dog",
        "--merge out --rank 0",  # 0 is a value where the default is None
        "--judge model --eight",
        "--judge people",
        "--eight False --four",
    ],
)
def test_a_right_value_passes(argv):
    parse_arguments(argv.split(), (Checked,), "")


@given(
    limits=st.tuples(st.integers(-50, 50), st.integers(0, 50)),
    strict=st.tuples(st.booleans(), st.booleans()),
    beyond=st.integers(1, 50),
)
def test_each_bound_holds_at_its_value_or_just_beyond(limits, strict, beyond):
    low, high = limits[0], limits[0] + limits[1]
    check = Check(**{"above" if strict[0] else "least": low, "below" if strict[1] else "most": high})
    if low < high:
        assert check.holds((low + high) / 2)
        assert check.holds(low) is not strict[0]
        assert check.holds(high) is not strict[1]
    assert not check.holds(low - beyond)
    assert not check.holds(high + beyond)
    excepted = Check(least=low, unless=low - beyond)
    assert excepted.holds(low - beyond)
    assert not excepted.holds(low - beyond - 1)


@given(values=st.lists(st.integers(-3, 6), min_size=1, max_size=5))
def test_bounds_hold_for_each_value_of_a_list(values):
    wrong = [value for value in values if value < 1]
    if wrong:
        with pytest.raises(UsageError, match=f"--sizes {wrong[0]} must be at least 1"):
            Check(least=1).check("sizes", values)
    else:
        Check(least=1).check("sizes", values)


def test_own_and_common_flags_are_checked_before_the_full_class_is_loaded(config):
    def never():
        raise AssertionError("a wrong value must be reported before")

    @dataclass
    class Often:
        often: int = option(1, least=1, help="Often used.")

    def full():
        return Full

    options = {"common": Often, "full": never}
    for argv in (["--seeds", "1"], [config("seeds: 1\nseldom: 3\n")]):
        with pytest.raises(UsageError, match="--seeds 1 must be"):
            parse_arguments(["--seldom", "-1e-3", *argv], (Checked,), "", **options)
    for argv in (["--often", "0"], [config("often: 0\n")]):
        with pytest.raises(UsageError, match="--often 0 must be"):
            parse_arguments(argv, (Checked,), "", **options)

    def refuse(checked):
        raise UsageError(f"{checked.seeds} seeds")

    with pytest.raises(UsageError, match="7 seeds"):
        parse_arguments(["--seeds", "7"], (Checked,), "", **options, check=refuse)
    own, others = parse_arguments(
        [config("often: 4\nseeds: 3\nseldom: 9\n"), "--seldom", "8"], (Checked,), "", common=Often, full=full
    )
    assert (own.seeds, others.often, others.seldom) == (3, 4, 8)
    with pytest.raises(UsageError, match="unrecognized flag seedz; did you mean seeds"):
        parse_arguments([config("seedz: 4\n")], (Checked,), "", common=Often, full=full)
    with pytest.raises(UsageError, match="unrecognized flag --seedz; did you mean --seeds"):
        parse_arguments(["--seedz", "4"], (Checked,), "", common=Often, full=full)


def test_help_shows_a_bound_that_is_not_expected(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"], (Checked,), "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Seeds. [5; at least 2]" in shown
    assert "Sizes. [1]" in shown


def test_a_check_that_does_not_exist_is_an_error_of_the_declaration():
    with pytest.raises(TypeError, match="leest"):
        option(1, leest=1, help="Number.")


UNBOUNDED = {
    "reward_weights": "a negative weight makes a reward a penalty",
    "layer": "counts from the end where negative; the model says how many there are",
    "layers": "as layer",
    "head": "as layer",
    "heads": "as layer",
}


def flag_dataclasses():
    for path in sorted((REPOSITORY / "lm_trials").rglob("*.py")):
        if "= option(" in path.read_text():
            module = importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
            for kind in vars(module).values():
                if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__:
                    yield kind


def test_every_number_has_a_bound_or_a_reason_for_none_and_checks_name_flags():
    kinds = list(flag_dataclasses())
    assert len(kinds) > 30
    used = set()
    for kind in kinds:
        hints, declared = get_type_hints(kind), [each for each in fields(kind) if "check" in each.metadata]
        for each in declared:
            check = each.metadata["check"]
            related = [flags for rule in (check.needs, check.not_with) for flags in rule_flags(rule)]
            assert set(related) <= {other.name for other in declared}, (kind, each.name)
            if re.search(r"\b(int|float)\b", str(hints[each.name])) and not check.bounds:
                reason = {each.name, f"{kind.__name__}.{each.name}"} & set(UNBOUNDED)
                assert reason, f"{kind.__name__}.{each.name} has no bound"
                used |= reason
    assert used == set(UNBOUNDED)


def rule_flags(rule):
    rules = rule.values() if isinstance(rule, dict) else [rule]
    return [name for each in rules for name in ([each] if isinstance(each, str) else each)]
