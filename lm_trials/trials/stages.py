"""Stages of a trial file: their arms, what these start from, the grid that multiplies them, and what they differ in.

A key of a stage that is none of `STAGE_KEYS` is a flag of its program.  `parameters` is a grid in the format of W&B's
sweeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import name_fault, plain_name
from lm_trials.flags import recipe_file
from lm_trials.trials.differences import GROUPS
from lm_trials.trials.entries import TRAINING, as_command, as_list, as_mapping, as_number
from lm_trials.trials.trial import Stage

STAGE_KEYS = ("program", "after", "arms", "parameters", "varies")
OWN_FLAGS = ("seed", "data_seed", "output_dir", "run_name", "overwrite_output_dir")  # set by the trial


def read_stages(given: Any) -> dict[str, Stage]:
    """Return the stages by name, in their order."""
    stages: dict[str, Stage] = {}
    for name, about in as_mapping(given, "stages").items():
        stages[str(name)] = _stage(str(name), as_mapping(about, f"stages.{name}"), stages)
    _check_folders(stages)
    return stages


def _stage(name: str, given: Mapping[str, Any], before: Mapping[str, Stage]) -> Stage:
    key = f"stages.{name}"
    (program, *_) = as_command(given.get("program", ""), TRAINING, f"{key}.program")
    after = None if given.get("after") is None else str(given["after"])
    if after is not None and after not in before:
        valid = did_you_mean(after, before) if before else "the first stage cannot follow another"
        raise UsageError(f"{key}.after: {after} is not a stage above it; {valid}")
    shared = {str(flag): value for flag, value in given.items() if flag not in STAGE_KEYS}
    earlier = before[after].arms if after is not None else ()
    arms = given.get("arms")
    if arms is None:
        arms = {arm: {"after": arm} for arm in earlier} or {name: {}}
    values = parameter_values(given.get("parameters"), f"{key}.parameters")
    grid = tuple(flag for flag, of in values.items() if len(of) > 1)
    flags: dict[str, dict[str, Any]] = {}
    parents: dict[str, str] = {}
    for arm, own in as_mapping(arms, f"{key}.arms").items():
        about = {} if own is None else own
        if not isinstance(about, dict):
            raise UsageError(f"{key}.arms.{arm}: {own} is not a mapping; write the flags that this arm changes")
        parent = _parent(f"{key}.arms.{arm}", str(arm), about.get("after"), earlier)
        for suffix, point in _grid(values, grid):
            full = f"{arm}-{suffix}" if suffix and len(arms) > 1 else suffix or str(arm)
            if full in flags:
                raise UsageError(f"{key}: two arms would be called {full}; give them other names under arms")
            flags[full] = {**shared, **{str(k): v for k, v in about.items() if k != "after"}, **point}
            if parent is not None:
                parents[full] = parent
    _check_arms(key, flags, parents)
    return Stage(name, program, flags, after, parents, _varies(key, given.get("varies"), flags), grid)


def _check_arms(key: str, flags: Mapping[str, Mapping[str, Any]], parents: Mapping[str, str]) -> None:
    """Refuse a recipe that is not there, a flag that the trial sets, and two arms that would train the same runs."""
    own_flags = (*OWN_FLAGS, "model_name_or_path") if parents else OWN_FLAGS
    seen: dict[Any, str] = {}
    for arm, of in flags.items():
        if "config" in of and not recipe_file(str(of["config"])).is_file():
            raise UsageError(f"{key}: config {of['config']} is not a file; give a recipe's name or a YAML file")
        if own_flag := next((flag for flag in of if flag.replace("-", "_") in own_flags), None):
            raise UsageError(f"{key}: {own_flag} of {arm} is set by the trial itself; remove it")
        numbers = {flag: as_number(value) for flag, value in of.items()}  # 1e-3 is 0.001
        values = frozenset((flag, str(value) if (n := numbers[flag]) is None else n) for flag, value in of.items())
        same = seen.setdefault((parents.get(arm), values), arm)
        if same != arm:
            raise UsageError(f"{key}: the arms {same} and {arm} have the same flags; change a flag, or remove one arm")


def _check_folders(stages: Mapping[str, Stage]) -> None:
    """Refuse two runs in one folder, `<stage>-<arm>-s<seed>`, and names that cannot be a folder's."""
    owners: dict[str, str] = {}
    for stage in stages.values():
        for arm in stage.arms:
            name = f"{stage.name}-{arm}"
            if other := owners.get(name):
                raise UsageError(f"stages: {other} and {stage.name}.{arm} would have one folder {name}; rename one")
            for each in (stage.name, arm, name):
                if fault := name_fault(each):
                    raise UsageError(f"stages: the name {each} of {stage.name}.{arm} {fault}; choose another")
            owners[name] = f"{stage.name}.{arm}"


def _parent(key: str, arm: str, after: Any, earlier: Sequence[str]) -> str | None:
    """Return the arm that an arm starts from: the one it names, the one of its own name, or the only one."""
    if not earlier:
        if after is not None:
            raise UsageError(f"{key}.after: {after}: its stage has no `after`; name the stage that it follows there")
        return None
    if after is None:
        after = arm if arm in earlier else earlier[0] if len(earlier) == 1 else None
    if after not in earlier:
        what = "the arm that it follows is missing" if after is None else f"{after} is not an arm of the stage before"
        raise UsageError(f"{key}.after: {what}; {did_you_mean(str(after), earlier)}")
    return str(after)


def parameter_values(parameters: Any, key: str) -> dict[str, list[Any]]:
    """Return the values of each parameter of a grid in W&B's format.

    Raises:
        UsageError: for a parameter that is no list of values, as of a random search.
    """
    found: dict[str, list[Any]] = {}
    for flag, about in ({} if parameters is None else as_mapping(parameters, key)).items():
        if not isinstance(about, dict) or [*about] not in (["value"], ["values"]):
            raise UsageError(f"{key}.{flag}: give `value: X` or `values: [X, Y]`; other searches are not supported")
        values = about["values"] if "values" in about else [about["value"]]
        if not isinstance(values, list) or not values:
            raise UsageError(f"{key}.{flag}.values: {values} is not a list of values")
        found[str(flag)] = values
    return found


def _grid(values: Mapping[str, list[Any]], named_by: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the points of a grid, each with a name of its values of some flags; one point without a grid."""
    points = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return [("-".join(plain_name(str(point[flag])) for flag in named_by), point) for point in points]


def _varies(key: str, stated: Any, flags: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the flags in which the arms of a stage differ; those of several variables must be stated."""
    names = {name for of in flags.values() for name in of}
    found = sorted(name for name in names if len({str(of.get(name)) for of in flags.values()}) > 1)
    differ = ", ".join(found) or "nothing"
    if stated is not None:
        wanted = sorted(map(str, as_list(stated)))
        if wanted != found:
            raise UsageError(f"{key}.varies says {', '.join(wanted) or 'nothing'}; the arms differ in {differ}")
        return tuple(found)
    owners = {name: group for group, (members, _) in GROUPS.items() for name in members} | {"data_mix": "data"}
    if len({owners.get(name, name) for name in found}) > 1:
        raise UsageError(
            f"{key}.arms differ in {differ}, so no difference could be attributed to one variable; make them equal in "
            f"all but one, or state `varies: [{differ}]`"
        )
    return tuple(found)
