"""Flags from dataclasses with their checks, `--config FILE.yaml`, and `--help` without torch.

A script's own flags are a dataclass that imports nothing heavy; `option` declares a flag with its help and its bounds.
A training script also takes the flags of `TrainingArguments`: `--help` shows the most used of them, `--help_all` loads
torch and shows all.  Own flags are parsed and checked before that class is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
import types
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import cleandoc, get_annotations
from pathlib import Path
from textwrap import fill, wrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lm_trials.console import UsageError, did_you_mean, load_libraries
from lm_trials.files import check_writable, name_fault, plain_name

LARGEST = 2**53  # of whole numbers; the largest that JSON readers keep
SEED: dict[str, Any] = {"least": 0, "most": 2**32 - 1}
"""The bounds of a seed, for `option`."""


def option(
    default: Any = dataclasses.MISSING, *, help: str, aliases: Sequence[str] = (), group: str = "", **checks: Any
) -> Any:
    """Declare one flag of a dataclass; a list default is copied for each use.

    Args:
        group: heading in `--help`; by default the `flag_group` of the dataclass that declares the flag.
        checks: the fields of `Check`.
    """
    metadata = {"help": help, "aliases": aliases, "group": group, "check": Check(**checks)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """What a flag's value must be.  Bounds hold for each value of a list; None passes them.

    Attributes:
        least, above, most, below: bounds of a number.
        unless: one number that the bounds do not apply to, for example 0 for "none".
        finite: whether inf and nan are refused.
        whole: whether a number of at least 1 must be whole; below 1 it is a share.
        one_of: the valid words of a list or of an optional flag; `Literal` does the same for a single word.
        distinct: whether no value of a list may be repeated.
        filled: whether text must be more than spaces, and a list not empty.
        output: whether it is a folder that results go to, which must be one that can be written to.
        folder_name: whether text becomes the name of a folder or file (`files.name_fault`).
        required: what to give (a metavar) where the flag must be given.
        needs: flags of which one must be set where this one is; or a dictionary from values of this flag to them.
        not_with: flags that must not be set where this one is; or a dictionary likewise.
        why: the reason, where it is not obvious.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    unless: float | None = None
    finite: bool = True
    whole: bool = False
    one_of: Iterable[str] = ()
    distinct: bool = False
    filled: bool = False
    output: bool = False
    folder_name: bool = False
    required: str = ""
    needs: str | tuple[str, ...] | dict[Any, str | tuple[str, ...]] = ()
    not_with: str | tuple[str, ...] | dict[Any, str | tuple[str, ...]] = ()
    why: str = ""

    @property
    def bounds(self) -> str:
        """The bounds in words.

        >>> Check(above=0, most=1).bounds, Check(least=8, unless=0).bounds
        ('above 0 and at most 1', 'at least 8, or 0')
        """
        limits = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        words = " and ".join(f"{word} {_shown(limit)}" for word, limit in limits.items() if limit is not None)
        return words if self.unless is None else f"{words}, or {_shown(self.unless)}"

    def holds(self, number: float) -> bool:
        """Whether a number is within the bounds.

        >>> [Check(least=2, unless=0).holds(number) for number in (0, 1, 2)]
        [True, False, True]
        """
        if self.unless is not None and number == self.unless:
            return True
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is wrong by itself."""
        values = value if isinstance(value, list) else [value]
        empty = not values or any(word is None or (isinstance(word, str) and not word.strip()) for word in values)
        if self.required and empty:
            raise UsageError(f"--{name} is missing; give --{name} {self.required}")
        if (self.filled or self.output) and empty and value is not None:
            raise UsageError(f"--{name} must not be empty{self._because}; give a value, or omit the flag")
        for each in values:
            if isinstance(each, str):
                if wrong := re.search("[\0\ud800-\udfff]", each):
                    raise UsageError(f"--{name} {each!r} contains {wrong[0]!r}, which is not text; remove it")
                if each.endswith("\r"):
                    raise UsageError(f"--{name} {each!r} ends with a Windows line end; run dos2unix on the script")
                if self.folder_name and (fault := name_fault(each)):
                    raise UsageError(f"--{name} {each!r} is not a plain name: it {fault}; give one such as stories")
            if isinstance(each, (int, float)) and not isinstance(each, bool):
                if isinstance(each, int) and abs(each) > LARGEST:
                    raise UsageError(f"--{name} {each} is too large; whole numbers go up to {LARGEST}")
                if self.whole and each >= 1 and each % 1:
                    raise UsageError(f"--{name} {_shown(each)} must be a whole number, or a share below 1")
                if self.finite and not math.isfinite(each):
                    raise UsageError(f"--{name} {each} must be a finite number")
                if not self.holds(each):
                    raise UsageError(f"--{name} {_shown(each)} must be {self.bounds}{self._because}")
            if self.one_of and each is not None and each not in self.one_of:
                raise UsageError(f"--{name} {each}: {did_you_mean(each, self.one_of)}")
            if self.distinct and values.count(each) > 1:
                raise UsageError(f"--{name} {_shown(each)} is given twice; give each value once")
        if self.output and value is not None:
            check_writable(f"--{name}", value)

    def check_with(self, name: str, value: Any, others: dict[str, tuple[Any, Any]]) -> None:
        """Refuse a value that another flag forbids, or that needs another; `others` are values and defaults."""
        shown = f"--{name}" if isinstance(value, (bool, list)) else f"--{name} {_shown(value)}"
        needs = _named(self.needs, value)
        if needs and not any(_is_set(*others[other]) for other in needs):
            raise UsageError(f"{shown} needs {' or '.join(f'--{other}' for other in needs)}{self._because}")
        for other in _named(self.not_with, value):
            if _is_asked(*others[other]):
                raise UsageError(f"{shown} and --{other} cannot be combined{self._because}; remove one of them")

    @property
    def _because(self) -> str:
        return f" ({self.why})" if self.why else ""


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def _named(flags: Any, value: Any) -> tuple[str, ...]:
    named = flags.get(value, ()) if isinstance(flags, dict) else flags
    return (named,) if isinstance(named, str) else tuple(named)


def _is_set(value: Any, default: Any) -> bool:
    """Whether a flag has a value that does something; 0 does where the default is None, as in `--head 0`."""
    return value is not None and value is not False and (default is None or bool(value))


def _is_asked(value: Any, default: Any) -> bool:
    """Whether a flag is set to something that its default is not."""
    return _is_set(value, default) and value != default


def check_flags(*instances: Any, declared: type | None = None) -> None:
    """Check the values of dataclasses of flags; `parse_arguments` and `parse_mapping` have done it.

    Args:
        declared: the dataclass whose options apply, where it is not the instances' own.

    Raises:
        UsageError: for the first wrong value.

    >>> @dataclasses.dataclass
    ... class Own:
    ...     seeds: int = option(5, least=2, why="an interval needs two seeds", help="Seeds.")
    >>> check_flags(Own(1))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --seeds 1 must be at least 2 (an interval needs two seeds)
    """
    fields = {
        field.name: (instance, field)
        for instance in instances
        for field in dataclasses.fields(declared or instance)
        if "check" in field.metadata
    }
    values = {name: (getattr(instance, name), _default(field)) for name, (instance, field) in fields.items()}
    checks = {name: field.metadata["check"] for name, (_, field) in fields.items()}
    for name, (value, _) in values.items():
        checks[name].check(name, value)
    for name, (value, default) in values.items():
        if _is_asked(value, default):
            checks[name].check_with(name, value, values)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


class ParsedError(Exception):
    """Ends a program after its flags were parsed, within `parsing_only`; `values` are the parsed flags by name."""

    def __init__(self, parsed: Iterable[Any]) -> None:
        super().__init__("the flags are valid")
        self.values = {
            field.name: getattr(each, field.name) for each in parsed for field in dataclasses.fields(each) if field.init
        }


_parsing_only = ContextVar("_parsing_only", default=False)


@contextmanager
def parsing_only() -> Iterator[None]:
    """Let programs parse their flags and then raise `ParsedError`, so that a command is checked without its work."""
    token = _parsing_only.set(True)
    try:
        yield
    finally:
        _parsing_only.reset(token)


def parse_arguments(
    argv: Sequence[str] | None,
    own: tuple[type, ...],
    description: str,
    common: type | None = None,
    full: Callable[[], type] | None = None,
    prog: str | None = None,
    check: Callable[..., Any] | None = None,
    first: str | None = None,
) -> tuple[Any, ...]:
    """Parse `argv` (default: the command line) into one object for each dataclass.

    Args:
        own: torch-free dataclasses of the script's own flags.
        description: the script's docstring.
        common: a torch-free dataclass that documents the most used flags of the class that `full` loads.
        full: loads the class with all further flags, for example a subclass of `TrainingArguments`.
        check: checks of the own flags that `option` cannot declare; called with their objects before `full`.
        first: the flag that words before any flag belong to.

    Raises:
        UsageError: for an unknown flag or key, a wrong value, or a config file that cannot be read.
        SystemExit: with status 0 after `--help` or `--help_all`.
        ParsedError: within `parsing_only`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if first and argv and not argv[0].startswith("-"):
        argv = [f"--{first}", *argv]
    parser = _parser(own, description, prog)
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(_with_help(_parser((*own, common) if common else own, "", prog), False))
    if "-h" in argv or "--help" in argv:
        _with_help(_parser((*own, common) if common else own, description, prog), full is not None).print_help()
        raise SystemExit(0)
    if full and "--help_all" in argv:
        load_libraries()
        _full_parser(full(), _with_help(parser, True)).print_help()
        raise SystemExit(0)
    path, arm, argv = _split_config(argv)
    config = read_config(path, arm) if path else {}
    argv = filled(argv) if full else argv
    *parsed, rest, config = _parse(parser, own, argv, config, path, partly=full is not None)
    check_flags(*parsed)
    if common:
        check_given((common,), rest, config, path)
    if check:
        check(*parsed)
    if full:
        load_libraries()
        full_type = full()
        others = _full_parser(full_type, None)
        others.known |= _flags(parser)
        *parsed[len(own) :], _, _ = _parse(others, (full_type,), rest, config, path)
    if _parsing_only.get():
        raise ParsedError(parsed)
    return tuple(parsed)


def filled(argv: Sequence[str]) -> list[str]:
    """Fill `{flag}` in the names of runs and folders with the word that the command line gives for that flag.

    A sweep has one text for these flags in all its runs.

    Raises:
        UsageError: for a flag that is not given.

    >>> filled(["--seed=1", "--output_dir=runs/{dataset_name}-s{seed}", "--dataset_name", "sets/a"])
    ['--seed=1', '--output_dir=runs/sets-a-s1', '--dataset_name', 'sets/a']
    """
    given: dict[str, str] = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            given[_plain(name[2:])] = value if equals else following

    def fill(of: str, text: str) -> str:
        for flag in re.findall(r"\{(\w+)\}", text):
            if flag not in given:
                raise UsageError(f"--{of}: {{{flag}}} has no value; give --{flag} on the command line too")
            text = text.replace(f"{{{flag}}}", plain_name(given[flag]))
        return text

    if "run_name" in given:
        given["run_name"] = fill("run_name", given["run_name"])  # --output_dir may contain it
    words, flag = [], ""
    for word in argv:
        flag = _plain(word[2:].partition("=")[0]) if word.startswith("--") else flag
        words.append(fill(flag, word) if flag in ("run_name", "output_dir", "model_name_or_path") else word)
    return words


def check_given(
    kinds: tuple[type, ...], argv: Sequence[str], config: Mapping[str, Any] | None = None, path: Path | None = None
) -> None:
    """Check the flags of some classes where others are given too, before anything heavy is loaded.

    Raises:
        UsageError: for the first wrong value.
    """
    *given, _, _ = _parse(_parser(kinds, "", None), kinds, list(argv), dict(config or {}), path, partly=True)
    check_flags(*given)


def show_commands(prog: str, description: str, commands: Mapping[str, tuple[type, Any]]) -> None:
    """Print the help of a program that has commands of its own: its docstring, and each command with one line."""
    parser = ArgumentParser(prog=prog, usage="%(prog)s COMMAND [--flag value ...]", add_help=False)
    parser.formatter_class = HelpFormatter
    parser.description = cleandoc(description)
    group = parser.add_argument_group("commands")
    for name, (arguments, _) in commands.items():
        group.add_argument(name, help=(arguments.__doc__ or "").partition("\n")[0])
    parser.print_help()


def parse_mapping(values: dict[str, Any], own: type) -> Any:
    """Parse `flag: value` pairs, as one entry of a YAML list holds them, into a dataclass, checked like typed flags.

    Raises:
        UsageError: for an unrecognized flag, naming the nearest; for a wrong value.
    """
    parsed, *_ = _parse(_parser((own,), "", None), (own,), [], values)
    check_flags(parsed)
    return parsed


def _parse(
    parser: OneLineParser,
    types: tuple[type, ...],
    argv: list[str],
    config: dict[str, Any],
    path: Path | None = None,
    partly: bool = False,
) -> tuple[Any, ...]:
    """Return the objects, and what `partly` leaves: words and keys that are other classes' flags."""
    try:
        from_file = _mapping_as_flags(config, parser, partly)
        parser.parse_known_args(from_file)  # a wrong value is reported with the file it stands in
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}" if path else str(error)) from None
    found, rest = parser.parse_known_args(from_file + _merged_lists(_spelled_out(argv, parser), parser))
    if rest and not partly:
        if plain := re.fullmatch("[\u2010-\u2015\u2212][-\u2010-\u2015\u2212]*(.+)", rest[0]):
            raise UsageError(f"{rest[0]} begins with {rest[0][0]!r} instead of two hyphens; type --{plain[1]}")
        if not rest[0].startswith("-"):
            flag = "model_name_or_path" if "model_name_or_path" in _flags(parser) else "flag"
            raise UsageError(f"{rest[0]} has no flag before it; give --{flag} {rest[0]}")
        known = [f"--{flag}" for flag in (*_flags(parser), *parser.known, "config", "arm")]
        raise UsageError(f"unrecognized flag {rest[0]}; {_nearest(rest[0], known)}")
    try:
        names = ([field.name for field in dataclasses.fields(kind) if field.init] for kind in types)
        values = ({name: _at_home(getattr(found, name)) for name in own} for own in names)
        objects = [kind(**own) for kind, own in zip(types, values, strict=True)]
    except (ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from None
    flags = _flags(parser)
    return *objects, rest, {key: value for key, value in config.items() if _plain(key) not in flags}


def _at_home(value: Any) -> Any:
    """Return a value with the user's folder for `~/`, which shells leave in quotes, after `=` and in YAML files."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


class OneLineParser(ArgumentParser):
    """Reports a wrong value in one line, as all scripts here report a user's mistake."""

    known: dict[str, Action] = {}  # noqa: RUF012 - other classes' flags, named where a flag is unknown

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise what argparse prints with the usage."""
        raise UsageError(message)


def _parser(types: tuple[type, ...], description: str, prog: str | None) -> OneLineParser:
    parser = OneLineParser(
        description=cleandoc(description),
        prog=prog,
        usage="%(prog)s [--flag value ...]",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        add_help=False,
    )
    groups: dict[str, Any] = {}
    for kind in types:
        hints = get_type_hints(kind)
        for field in sorted(dataclasses.fields(kind), key=lambda field: bool(field.kw_only)):  # shared flags come last
            if field.init:
                title = field.metadata["group"] or _group_of(kind, field.name)
                group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
                _add_flag(group, field, hints[field.name])
    return parser


def _group_of(kind: type, name: str) -> str:
    """Return the heading of a flag: the `flag_group` of the class that declares it, else of `kind`."""
    declaring = next(base for base in kind.__mro__ if name in get_annotations(base))
    return str(declaring.__dict__.get("flag_group") or kind.__dict__.get("flag_group", "flags"))


def _add_flag(parser: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """Add a flag of one of the types that own flags have: number, text, bool, Literal, a list of these, or None."""
    default = _default(field)
    if get_origin(hint) is types.UnionType or type(None) in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    settings: dict[str, Any] = {"type": hint, "default": default, "help": field.metadata["help"]}
    if get_origin(hint) is list:
        settings |= {"type": get_args(hint)[0], "nargs": "+"}
    elif get_origin(hint) is Literal:
        settings |= {"type": str, "choices": get_args(hint)}
    elif hint is bool:
        settings |= {"type": string_to_bool} | ({} if default is None else {"nargs": "?", "const": True})
    elif hint in (int, float) and default is None:
        settings["type"] = _number_or_none(hint)
    action = parser.add_argument(f"--{field.name}", *field.metadata["aliases"], **settings)
    action.bounds = field.metadata["check"].bounds
    if default is True:
        parser.add_argument(
            f"--no_{field.name}",
            action="store_false",
            dest=field.name,
            default=True,
            help=SUPPRESS,
        )


def string_to_bool(word: str) -> bool:
    """Read a boolean, as transformers' parser does.

    >>> string_to_bool("False"), string_to_bool("yes")
    (False, True)
    """
    if word.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if word.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise ArgumentTypeError(f"{word} is not a boolean; give True or False")


def _full_parser(full: Any, own: OneLineParser | None) -> Any:
    """Return the parser of a class with transformers' types, after the flags of `own` in the help."""
    from transformers import HfArgumentParser

    class FullParser(OneLineParser, HfArgumentParser):
        pass

    parser = FullParser(
        full,
        parents=[own] if own else [],
        description=own.description if own else "",
        prog=own.prog if own else None,
        usage="%(prog)s [--flag value ...]",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        add_help=False,
    )
    _tidy(parser)
    return parser


def _with_help(parser: OneLineParser, more: bool) -> OneLineParser:
    """Add the flags that every script has, for its help."""
    group = parser.add_argument_group("every command")
    group.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="Read flags from a YAML file or an installed recipe (such as demo); flags on the command line win.",
    )
    group.add_argument("--arm", metavar="NAME", help="Name of the arm to run, if that file defines arms.")
    group.add_argument("-h", "--help", action="store_true", help="Show this help and exit.")
    if more:
        group.add_argument("--help_all", action="store_true", help="Show every flag and exit.")
        parser.epilog = "--help_all also shows every flag of the Trainer's arguments."
    return parser


def _plain(key: Any) -> str:
    return str(key).replace("-", "_")


def _flags(parser: ArgumentParser) -> dict[str, Action]:
    """Return every flag by its name with underscores and without the two dashes before it."""
    flags = parser._option_string_actions.items()
    return {name[2:].replace("-", "_"): action for name, action in flags if name.startswith("--")}


def _nearest(flag: str, flags: list[str]) -> str:
    """Name the nearest flag; all of them would be a page."""
    near = did_you_mean(flag.partition("=")[0].replace("-", "_"), [name.replace("-", "_") for name in flags])
    return near.partition("valid:")[0].strip().replace("mean __", "mean --") or "--help lists them"


def _tidy(parser: ArgumentParser) -> None:
    """Leave only the underscore spelling of each flag in the help; both are accepted.

    A number whose default is None may be given as None, so that a command line can undo a file's value.
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
    """Keeps a docstring's commands, names a value by its kind, and adds a flag's default where its help lacks it."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=31, **settings)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap paragraphs to the terminal; keep the lines of those that are indented, which are commands."""
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            part if part.startswith(" ") else fill(part, width, break_on_hyphens=False) for part in paragraphs
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        if action.dest.endswith(("_dir", "folder")):
            return "FOLDER"
        return {"int": "N", "float": "X", "string_to_bool": "BOOL"}.get(getattr(action.type, "__name__", ""), "TEXT")

    def _format_action_invocation(self, action: Action) -> str:
        """Write `--flag N`, and a boolean without a value."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        value = "" if getattr(action.type, "__name__", "") == "string_to_bool" and action.nargs == "?" else None
        if action.nargs == 0 or value == "":
            return ", ".join(action.option_strings)
        kind = self._get_default_metavar_for_optional(action)
        if action.nargs == "+":
            return f"{', '.join(action.option_strings)} {action.metavar or kind} ..."
        return f"{', '.join(action.option_strings)} {self._format_args(action, kind)}"

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        bounds = getattr(action, "bounds", "")
        expected = ("", "at least 0", "at least 1", "above 0", f"at least 0 and at most {2**32 - 1}")
        notes = [] if bounds in expected else [bounds]
        known = action.default not in (None, SUPPRESS, "", [])
        if known and action.nargs != 0 and not re.search(r"\bdefault (all|unless)|Default:|the default", text):
            default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
            also = f"; --no_{action.dest} for False" if default is True else ""
            notes = [str(default).replace("%", "%%") + also, *notes]
        text += f" [{'; '.join(notes)}]" if notes else ""
        return text


def _split_config(argv: list[str]) -> tuple[Path | None, str | None, list[str]]:
    """Take `--config FILE` and `--arm NAME` out of the command line; FILE may be the name of an installed recipe."""
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
                "--config": "a file; give --config FILE.yaml, or the name of an installed recipe",
                "--arm": "a name of that file's arms; give --arm NAME",
            }
            raise UsageError(f"{name} needs {needs[name]}")
    if "--arm" in given and "--config" not in given:
        raise UsageError(f"--arm {given['--arm']} names an arm of a config file; give --config FILE.yaml too")
    try:
        return recipe_file(given["--config"]) if "--config" in given else None, given.get("--arm"), rest
    except UsageError as error:
        raise UsageError(f"--config {error}") from None


def recipe_file(name: str) -> Path:
    """Return the YAML file that a name stands for: a path, or a recipe that is installed with the package.

    Raises:
        UsageError: if there is neither; the text does not name the flag, which the caller knows.

    >>> recipe_file("demo").parts[-3:]
    ('lm_trials', 'configs', 'demo.yaml')
    """
    installed = {file.stem: file for file in (Path(__file__).parent / "configs").glob("*.yaml")}
    if name in installed and not Path(name).is_file():
        return installed[name]
    if "." not in name and not Path(name).exists():
        raise UsageError(f"{name} is neither a file nor an installed recipe; {did_you_mean(name, installed)}")
    return Path(name)


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


def read_config(path: Path, arm: str | None) -> dict[str, Any]:
    """Read a YAML file of flags, whose values are then checked like typed ones.

    Under `arms:` it may hold, by name, the flags in which the arms of a trial differ; one of them is then chosen.
    `HfArgumentParser.parse_yaml_file` and defaults set from a file skip types and choices: `lr: 3e-4` stays a string.
    """
    try:
        config = read_yaml(path)
        if not isinstance(config, dict):
            what = "is empty" if config is None else f"contains {type(config).__name__}"
            raise UsageError(f"it {what}; write `flag: value` lines")
        return _chosen_arm(config, arm)
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from None


def _chosen_arm(config: dict[str, Any], arm: str | None) -> dict[str, Any]:
    """Return the flags of one arm: those of all, and its own over them."""
    arms = config.pop("arms", None)
    if arms is None:
        if arm is not None:
            raise UsageError(f"it has no arms, so there is no --arm {arm}; remove it")
        return config
    if not isinstance(arms, dict) or not all(isinstance(flags, dict) for flags in arms.values()):
        raise UsageError("`arms` must contain names, each with `flag: value` lines under it")
    if arm is None:
        raise UsageError(f"it contains the arms of a trial; choose one with --arm: {', '.join(map(str, arms))}")
    if arm not in arms:
        raise UsageError(f"--arm {arm}: {did_you_mean(arm, map(str, arms))}")
    return {**config, **arms[arm]}


def read_yaml(path: Path) -> Any:
    """Read a YAML file in which `no`, `off` and dates are words, and the text of a number is as it is written.

    Raises:
        UsageError: if it cannot be read or is no YAML; the text does not name the file, which the caller knows.
    """
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_config_loader())
    except OSError as error:
        raise UsageError(f"it cannot be read ({error.strerror}); give a YAML file") from None
    except UsageError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # of a tag: `!!int x`
        mark = getattr(error, "problem_mark", None)
        why = f"line {mark.line + 1}: {error.problem}" if mark else str(error).splitlines()[0]  # type: ignore[union-attr]
        raise UsageError(f"it is not YAML ({why}); correct it") from None


def _mapping_as_flags(config: dict[str, Any], parser: OneLineParser, partly: bool) -> list[str]:
    """Turn `flag: value` pairs into words of a command line; `partly` leaves out keys of other commands."""
    actions = _flags(parser)
    flags: list[str] = []
    for key, value in config.items():
        if _plain(key) in actions:
            flags += _flag(_plain(key), actions[_plain(key)], value)
        elif not partly:
            raise UsageError(f"unrecognized flag {key}; {_nearest(_plain(key), [*actions, *parser.known])}")
    return flags


def _config_loader() -> type:
    """Return YAML's safe loader with changes, each for a value that would silently become another.

    `no`, `off`, `yes`, `on` and dates stay words (`eval_strategy: no` is not `False`), a number keeps its text (a name
    `2024_01` is not `202401`, nor `12:30` 750), and a key given twice is an error.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [
                (tag, pattern)
                for tag, pattern in resolvers
                if tag != "tag:yaml.org,2002:timestamp" and (tag != "tag:yaml.org,2002:bool" or first in "tTfF")
            ]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [str(key.value) for key, _ in node.value]
            for place, (key, _) in enumerate(node.value):
                if keys[place] in keys[:place]:
                    raise UsageError(f"line {key.start_mark.line + 1}: {keys[place]} is given twice; keep one")
            return super().construct_mapping(node, deep)

    def written(kind: type, read: Callable[..., Any]) -> Callable[[Any, Any], Any]:
        number = type("Number", (kind,), {"__str__": lambda self: self.text})

        def construct(loader: Any, node: Any) -> Any:
            value = number(read(loader, node))
            value.text = node.value
            return value

        return construct

    Loader.add_constructor("tag:yaml.org,2002:int", written(int, Loader.construct_yaml_int))
    Loader.add_constructor("tag:yaml.org,2002:float", written(float, Loader.construct_yaml_float))
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
