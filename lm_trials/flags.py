"""Arguments: flags from dataclasses, `--config FILE.yaml`, and `--help` without torch.

Every script's own flags are a dataclass that imports nothing heavy.  A training script has `TrainingArguments`' some
hundred flags besides: `--help` shows the dozen most used, `--help_all` loads torch and shows them all.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean


def parse_arguments(
    argv: Sequence[str] | None,
    own: tuple[type, ...],
    description: str,
    common: type | None = None,
    full: Callable[[], type] | None = None,
    prog: str | None = None,
) -> tuple[Any, ...]:
    """Parse `argv` (default: the command line) into one object for each dataclass.

    Args:
        own: torch-free dataclasses of the script's own flags.
        description: the script's docstring.
        common: a torch-free dataclass that documents the most used flags of the class that `full` loads.
        full: loads the class with all further flags, for example a subclass of `TrainingArguments`.

    Raises:
        UsageError: for an unknown flag or key, a wrong value, or a config file that cannot be read.
        SystemExit: with status 0 after `--help` or `--help_all`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        types = (*own, common) if common else own
        _parser(types, description, prog, more=full is not None).print_help()
        raise SystemExit(0)
    types = (*own, full()) if full else own
    parser = _parser(types, description, prog)
    if "--help_all" in argv:
        parser.print_help()
        raise SystemExit(0)
    path, arm, argv = _split_config(argv)
    try:
        from_file = _config_as_flags(path, arm, parser) if path else []
        if from_file:
            parser.parse_known_args(from_file)  # a wrong value is reported with the file it stands in
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from None
    argv = from_file + _merged_lists(_spelled_out(argv, parser), parser)
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from None
    if rest:
        raise UsageError(f"{rest[0]} is no flag here; {_nearest(rest[0], [f'--{flag}' for flag in _flags(parser)])}")
    return tuple(parsed[: len(types)])


def _flags(parser: ArgumentParser) -> dict[str, Action]:
    """Return every flag by its name with underscores and without the two dashes before it."""
    flags = parser._option_string_actions.items()
    return {name[2:].replace("-", "_"): action for name, action in flags if name.startswith("--")}


def _nearest(flag: str, flags: list[str]) -> str:
    """Name the nearest flag; all of them would be a page."""
    near = did_you_mean(flag.partition("=")[0].replace("-", "_"), [name.replace("-", "_") for name in flags])
    return near.partition("valid:")[0].strip().replace("mean __", "mean --") or "--help lists them"


def _parser(types: tuple[type, ...], description: str, prog: str | None, more: bool = False) -> Any:
    from transformers import HfArgumentParser

    class OneLineParser(HfArgumentParser):
        """Reports a wrong value in one line, as all scripts here report a user's mistake."""

        def error(self, message: str) -> None:
            raise UsageError(message)

    epilog = "--help_all shows every flag of transformers.TrainingArguments too." if more else None
    parser = OneLineParser(
        types,
        description=description,
        epilog=epilog,
        prog=prog,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="Read flags from a YAML file; the command line wins.")
    parser.add_argument("--arm", metavar="NAME", help="Which of that file's arms, where it has some.")
    if more:
        parser.add_argument("--help_all", action="store_true", help="Show every flag and leave.")
    _tidy(parser)
    return parser


def _tidy(parser: ArgumentParser) -> None:
    """Leave only the underscore spelling of each flag in the help; both are accepted.

    A number whose default is None may be given as None, so that a command line can take back what a file says.
    """
    for action in parser._actions:
        if action.default is None and action.nargs is None and action.type in (int, float):
            action.type = _number_or_none(action.type)
        dashed = [option for option in action.option_strings if "-" in option[2:]]
        if dashed and len(action.option_strings) > len(dashed):
            action.option_strings = [o for o in action.option_strings if o not in dashed]


def _number_or_none(kind: Callable[[str], float]) -> Callable[[str], float | None]:
    def read(word: str) -> float | None:
        return None if word == "None" else kind(word)

    read.__name__ = kind.__name__  # argparse names it where the word is none
    return read


class HelpFormatter(RawDescriptionHelpFormatter):
    """Keeps the lines of a script's docstring, and adds a flag's default where its help does not say it."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        known = action.default not in (None, SUPPRESS, "", [])
        if known and action.nargs != 0 and "default" not in text.lower():
            default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
            text = f"{text} [{str(default).replace('%', '%%')}]"
        return text


def _split_config(argv: list[str]) -> tuple[Path | None, str | None, list[str]]:
    """Take `--config FILE` and `--arm NAME` out of the command line."""
    given: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--config", "--arm"):
            rest.append(word)
            continue
        if name in given:
            raise UsageError(f"{name} is given twice ({given[name]} and another); give one")
        given[name] = value if equals else next(words, "")
        if not given[name] or given[name].startswith("--"):
            needs = {
                "--config": "a file; give --config FILE.yaml",
                "--arm": "a name of that file's arms; give --arm NAME",
            }
            raise UsageError(f"{name} needs {needs[name]}")
    if "--arm" in given and "--config" not in given:
        raise UsageError(f"--arm {given['--arm']} names an arm of a config file; give --config FILE.yaml too")
    return Path(given["--config"]) if "--config" in given else None, given.get("--arm"), rest


def _spelled_out(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Write flags with underscores, and a negative number as `--flag=-1e-3`, which argparse takes for a flag else."""
    flags = _flags(parser)
    words: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        plain = name[2:].replace("-", "_")
        if name.startswith("--") and plain in flags:
            words.append(f"--{plain}{equals}{value}")
        elif words and words[-1][2:] in flags and _is_negative_number(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _is_negative_number(word: str) -> bool:
    try:
        return word.startswith("-") and float(word) <= 0
    except ValueError:
        return False


def _merged_lists(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Write `--model_dir a --model_dir b` as `--model_dir a b`: of a repeated flag argparse would keep the last."""
    lists = {f"--{name}": action.dest for name, action in _flags(parser).items() if action.nargs == "+"}
    merged: dict[str, list[str]] = {}
    rest: list[str] = []
    current: list[str] = rest
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            if name in lists:
                current = merged.setdefault(lists[name], [])
                current += [value] if equals else []
                continue
            current = rest
        current.append(word)
    return rest + [word for dest, values in merged.items() for word in (f"--{dest}", *values)]


def _config_as_flags(path: Path, arm: str | None, parser: ArgumentParser) -> list[str]:
    """Turn a YAML file into flags, so that its values are checked like typed ones.

    Under `arms:` it may hold, by name, the flags in which the arms of a trial differ; one of them is then chosen.
    `HfArgumentParser.parse_yaml_file` and defaults set from a file skip types and choices: `lr: 3e-4` stays a string.
    """
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UsageError(f"it holds {type(config).__name__}; it must hold `flag: value` lines")
    return _mapping_as_flags(_chosen_arm(config, arm), parser)


def _chosen_arm(config: dict[str, Any], arm: str | None) -> dict[str, Any]:
    """Return the flags of one arm: those of all, and its own over them."""
    arms = config.pop("arms", None)
    if arms is None:
        if arm is not None:
            raise UsageError(f"it has no arms, so there is no --arm {arm}; leave it away")
        return config
    if not isinstance(arms, dict) or not all(isinstance(flags, dict) for flags in arms.values()):
        raise UsageError("its arms are no names with `flag: value` lines under each")
    if arm is None:
        raise UsageError(f"it holds the arms of a trial; choose one with --arm: {', '.join(map(str, arms))}")
    if arm not in arms:
        raise UsageError(f"--arm {arm}: {did_you_mean(arm, map(str, arms))}")
    return {**config, **arms[arm]}


def read_yaml(path: Path) -> Any:
    """Read a YAML file in which `no` and `off` are words.

    Raises:
        UsageError: if it cannot be read or is no YAML; the text does not name the file, which the caller knows.
    """
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_config_loader())
    except OSError as error:
        raise UsageError(f"it cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"it is no YAML ({str(error).splitlines()[0]}); mend it") from None


def parse_mapping(values: dict[str, Any], own: type) -> Any:
    """Parse `flag: value` pairs, as one entry of a YAML list holds them, into a dataclass, checked like typed flags.

    Raises:
        UsageError: for a key that is no flag, naming the nearest; for a wrong value.
    """
    parser = _parser((own,), "", None)
    try:
        parsed, *_ = parser.parse_args_into_dataclasses(_mapping_as_flags(values, parser), look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    return parsed


def _mapping_as_flags(config: dict[str, Any], parser: ArgumentParser) -> list[str]:
    actions = {
        name: action for name, action in _flags(parser).items() if name not in ("help", "config", "arm", "help_all")
    }
    flags: list[str] = []
    for key, value in config.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise UsageError(f"{key} is no flag; {_nearest(name, list(actions))}")
        flags += _flag(name, actions[name], value)
    return flags


def _config_loader() -> type:
    """Return YAML's safe loader with two changes, each for a value that would silently become another.

    `no`, `off`, `yes` and `on` stay words (`eval_strategy: no` is not `False`), and a key given twice is an error.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
                raise UsageError(f"{twice[0]} is given twice; keep one")
            return super().construct_mapping(node, deep)

    return Loader


def _flag(name: str, action: Action, value: Any) -> list[str]:
    if value is None:
        return []
    if action.nargs == 0:  # `--no_flag`
        raise UsageError(f"{name} takes no value; write `{action.dest}: false`")
    if getattr(action.type, "__name__", "") == "string_to_bool":
        value = {"on": True, "off": False}.get(str(value).lower(), value)
    if isinstance(value, list):
        if action.nargs != "+":
            raise UsageError(f"{name} is given a list {value}; it takes one value")
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        import json

        return [f"--{name}={json.dumps(value)}"]
    return [f"--{name}={value}"]


def option(default: Any = dataclasses.MISSING, *, help: str, **metadata: Any) -> Any:
    """Declare one flag of a dataclass with its help text; a list default is copied for each use."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return dataclasses.field(default=default, metadata={"help": help, **metadata})
