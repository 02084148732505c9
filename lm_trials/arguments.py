"""Arguments: flags from dataclasses, `--config FILE.yaml`, and `--help` without torch.

Every script's own flags are a dataclass that imports nothing heavy.  A training script has `TrainingArguments`' some
hundred flags besides: `--help` shows the dozen most used, `--help_all` loads torch and shows them all.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Action, ArgumentParser
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
    argv = _config_as_flags(argv, parser) + _merged_lists(_without_config(argv), parser)
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from None
    if rest:
        flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        raise UsageError(f"{rest[0]} is no flag here; {_nearest(rest[0], flags)}")
    return tuple(parsed[: len(types)])


def _nearest(flag: str, flags: list[str]) -> str:
    """Name the nearest flag; all of them would be a page."""
    return did_you_mean(flag, flags).partition("valid:")[0].strip() or "--help lists them"


def _parser(types: tuple[type, ...], description: str, prog: str | None, more: bool = False) -> Any:
    from argparse import RawDescriptionHelpFormatter

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
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="Read flags from a YAML file; the command line wins.")
    if more:
        parser.add_argument("--help_all", action="store_true", help="Show every flag and leave.")
    _tidy(parser)
    return parser


def _tidy(parser: ArgumentParser) -> None:
    """Leave only the underscore spelling of each flag in the help; both are accepted."""
    for action in parser._actions:
        dashed = [option for option in action.option_strings if "-" in option[2:]]
        if dashed and len(action.option_strings) > len(dashed):
            action.option_strings = [o for o in action.option_strings if o not in dashed]


def _config_path(argv: list[str]) -> Path | None:
    for at, word in enumerate(argv):
        if word == "--config":
            if at + 1 == len(argv):
                raise UsageError("--config needs a file; give --config FILE.yaml")
            return Path(argv[at + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _without_config(argv: list[str]) -> list[str]:
    rest, skip = [], False
    for word in argv:
        if not skip and word != "--config" and not word.startswith("--config="):
            rest.append(word)
        skip = word == "--config"
    return rest


def _merged_lists(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Write `--model_dir a --model_dir b` as `--model_dir a b`: of a repeated flag argparse would keep the last."""
    lists = {name: action.dest for action in parser._actions if action.nargs == "+" for name in action.option_strings}
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


def _config_as_flags(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Turn a YAML file into flags, so that its values are checked like typed ones.

    `HfArgumentParser.parse_yaml_file` and defaults set from a file skip types and choices: `lr: 3e-4` stays a string.
    """
    path = _config_path(argv)
    if path is None:
        return []
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is no YAML ({str(error).splitlines()[0]}); mend it") from None
    if not isinstance(config, dict):
        raise UsageError(f"--config {path} holds {type(config).__name__}; it must hold `flag: value` lines")
    actions = {action.dest: action for action in parser._actions}
    flags: list[str] = []
    for key, value in config.items():
        if key not in actions or key in ("help", "config", "help_all"):
            raise UsageError(f"--config {path}: {key} is no flag; {_nearest(str(key), list(actions))}")
        flags += _flag(actions[key], value)
    return flags


def _flag(action: Action, value: Any) -> list[str]:
    name = f"--{action.dest}"
    if value is None:
        return []
    if isinstance(value, list):
        return [name, *map(str, value)]
    if isinstance(value, dict):
        import json

        return [name, json.dumps(value)]
    return [name, str(value)]


def option(default: Any = dataclasses.MISSING, *, help: str, **metadata: Any) -> Any:
    """Declare one flag of a dataclass with its help text; a list default is copied for each use."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return dataclasses.field(default=default, metadata={"help": help, **metadata})
