"""Trial files: a claim, the runs that test it, their measurements, and the registered contrasts.

    claim: Fine-tuning hides a feature.
    seeds: [0, 1, 2]
    prepare: [prepare protocol_set --vocab_size 1000 --feature_delete Twist]
    stages:
      pretrain: {program: train, config: instructed_demo, arms: {seen: {dataset_name: pretrain-all}}}
    measure: [evaluate --dataset_name recovery-Twist]
    primary: {measure: loss, dataset: recovery-Twist, contrast: never - seen, margin: 0.01}

A key of a stage that is none of `STAGE_KEYS` is a flag of its program.  `parameters` is a grid in the format of W&B's
sweeps.  Everything is checked here that can be known without running a program.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import name_fault, plain_name
from lm_trials.flags import read_yaml, recipe_file
from lm_trials.trials.differences import GROUPS

KEYS = ("claim", "source", "seeds", "prepare", "stages", "measure", "primary", "secondary", "controls", "description")
STAGE_KEYS = ("program", "after", "arms", "parameters", "varies")
# The scripts of a clone, and the commands that run the same code.
SCRIPTS = {
    "train_gpt2.py": "train",
    "sft_lora.py": "tune",
    "eval_checkpoint.py": "evaluate",
    "cache_datasets.py": "cache",
    "prepare_tinystories.py": "prepare",
}
TRAINING = ("train", "tune")
MEASURING = ("evaluate", "constraints", "latent-city", "probe")
PREPARING = ("prepare", "cache")
OWN_FLAGS = ("seed", "data_seed", "output_dir", "run_name", "overwrite_output_dir")
SWEEP_KEYS = ("method", "parameters", "program", "command")
NO_GRID = ("early_terminate", "run_cap", "scheduler", "controller", "job", "image_uri")  # other runs than the grid's
SWEEP_IGNORED = ("name", "description", "project", "entity", "metric", "metrics", "apiVersion", "kind")
OF_THE_TRIAL = ("output_dir", "run_name", "report_to")  # where runs go, and that agents log to W&B
DEFAULT_SEED = 42  # of the programs, so that agents and `lm-trials run` train the same runs
MEASURES = ("loss", "table", "updates_to_threshold")
SCALES = ("identity", "log", "log2", "logit")
UNITS = ("nats per token", "bits per byte")  # of losses; `evaluations` changes to bits where tokens differ
EXPECTATIONS = ("greater", "less", "equivalent", "not_less", "not_greater")


@dataclass(frozen=True)
class Stage:
    """One grid of runs: each arm with each root seed.

    Attributes:
        program: train or tune.
        flags: of each arm, by the program's names.
        parents: the arm of `after` that each arm starts from; empty for the first stage of a lineage.
        varies: the flags in which the arms differ, as the file states them or as one variable.
        grid: the flags of `parameters` with several values; an arm's name ends with its values of them.
    """

    name: str
    program: str
    flags: Mapping[str, Mapping[str, Any]]
    after: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    varies: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms."""
        return tuple(self.flags)


@dataclass(frozen=True)
class Measure:
    """A command that is run on each run of some arms, with its `--model_name_or_path`.

    Attributes:
        words: after `lm-trials`, for example ("evaluate", "--dataset_name", "recovery-Twist").
        arms: the (stage, arm) pairs that are measured.
    """

    words: tuple[str, ...]
    arms: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Contrast:
    """One registered comparison: first minus second, per root seed.

    Attributes:
        role: primary, secondary or control.
        first, second: (stage, arm); `second` is None for a value compared with 0.
        outcome: what is measured: `measure` and the keys that belong to it, as in the file.
        expect: the claimed direction; of a control, the direction that would invalidate the trial.
        margin: in the unit of `scale`; the difference must lie beyond it (or, for `equivalent`, within it).
    """

    name: str
    role: str
    first: tuple[str, str]
    second: tuple[str, str] | None
    outcome: Mapping[str, Any]
    scale: str = "identity"
    expect: str = "greater"
    margin: float = 0.0


@dataclass(frozen=True)
class Trial:
    """A trial file, checked.

    Attributes:
        name: the file's name without its ending; runs go to `runs/<name>`, results to `results/<name>`.
        text: the file as it is.
    """

    name: str
    claim: str
    seeds: tuple[int, ...]
    stages: Mapping[str, Stage]
    prepare: tuple[tuple[str, ...], ...] = ()
    measures: tuple[Measure, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    source: str | None = None
    description: str = ""
    text: str = ""

    def of(self, role: str) -> list[Contrast]:
        """Return the contrasts of one role: primary, secondary or control."""
        return [contrast for contrast in self.contrasts if contrast.role == role]

    @property
    def registered(self) -> dict[str, Any]:
        """What a registration fixes, as values of JSON: `runs` (what is trained and measured) and `test` (the rest)."""
        runs = {
            "prepare": [shlex.join(words) for words in self.prepare],
            "stages": {
                name: {
                    "program": stage.program,
                    "after": stage.after,
                    "arms": {
                        arm: {"parent": stage.parents.get(arm), **_described(flags)}
                        for arm, flags in stage.flags.items()
                    },
                }
                for name, stage in self.stages.items()
            },
            "measure": [
                {"command": shlex.join(measure.words), "arms": [".".join(arm) for arm in measure.arms]}
                for measure in self.measures
            ],
        }
        contrasts = [
            {
                "name": contrast.name,
                "role": contrast.role,
                "first": ".".join(contrast.first),
                "second": contrast.second and ".".join(contrast.second),
                "outcome": json.loads(json.dumps(contrast.outcome, default=str)),
                "scale": contrast.scale,
                "expect": contrast.expect,
                "margin": contrast.margin,
            }
            for contrast in self.contrasts
        ]
        return {"runs": runs, "test": {"claim": self.claim, "seeds": list(self.seeds), "contrasts": contrasts}}

    @property
    def digest(self) -> str:
        """The SHA-256 of what is registered, in 16 characters."""
        return hashlib.sha256(json.dumps(self.registered, sort_keys=True).encode()).hexdigest()[:16]


def _described(flags: Mapping[str, Any]) -> dict[str, str]:
    """Return flags as texts, of a recipe also the digest of its file."""
    described = {key: str(value) for key, value in flags.items()}
    if "config" in flags:
        described["config_sha256"] = hashlib.sha256(recipe_file(described["config"]).read_bytes()).hexdigest()[:16]
    return described


def read_trial(path: Path) -> Trial:
    """Read and check a trial file, or a sweep file of W&B.

    Raises:
        UsageError: for a file that cannot be read, and for everything in it that cannot work.
    """
    try:
        described = read_yaml(path)
        if not isinstance(described, dict):
            raise UsageError("it does not contain `key: value` lines; lm-trials new writes an example")
        if fault := name_fault(path.stem):
            raise UsageError(f"its name is the name of the trial's folders, and {path.stem} {fault}; rename the file")
        if "method" in described:
            described = _trial_of_sweep(path.stem, described)
        return _trial(path.stem, described, path.read_text(encoding="utf-8"))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _trial_of_sweep(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep file's content as that of a trial file: one stage called `name`, and no outcome.

    Raises:
        UsageError: for a sweep that is no grid of flags of a training.
    """
    for key in given:
        if key in NO_GRID:
            raise UsageError(f"{key}: a trial trains all runs of its grid by itself; remove {key}")
        if key not in SWEEP_KEYS + SWEEP_IGNORED:
            raise UsageError(f"unknown key {key}; {did_you_mean(str(key), SWEEP_KEYS + SWEEP_IGNORED)}")
    if given["method"] != "grid":
        raise UsageError(f"method: {given['method']} chooses runs by earlier results or chance; write `method: grid`")
    values = parameter_values(given.get("parameters") or "", "parameters")
    seeds = values.pop("seed", [DEFAULT_SEED])
    for flag in OF_THE_TRIAL:
        values.pop(flag, None)
    program, flags = _swept_program(given)
    return {
        "claim": str(given.get("description") or f"The sweep {given.get('name', name)}."),
        "seeds": seeds,
        "stages": {
            name: {
                "program": program,
                **flags,
                "parameters": {flag: {"values": of} for flag, of in values.items()} or None,
                "varies": [flag for flag, of in values.items() if len(set(map(str, of))) > 1],
            }
        },
    }


def _swept_program(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the program that a sweep's command runs, and the flags that the command itself gives."""
    command = given.get("command") or ["${program}", "${args}"]
    if not isinstance(command, list):
        raise UsageError(f"command: {command} is not a list; write each word after a dash")
    words = [str(given.get("program", "")) if word == "${program}" else str(word) for word in command]
    programs = [SCRIPTS.get(Path(word).name, word) for word in words]
    place = next((place for place, program in enumerate(programs) if program in TRAINING), None)
    if place is None:
        raise UsageError(
            f"command: {shlex.join(words)} runs none of lm-trials train, lm-trials tune, train_gpt2.py and sft_lora.py"
        )
    flags: dict[str, Any] = {}
    flag = None
    for word in words[place + 1 :]:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            flags[flag] = value if equals else True
        elif not word.startswith("${"):
            if flag is None:
                raise UsageError(f"command: {word} has no flag before it; write --flag={word}")
            before = flags[flag]
            flags[flag] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return programs[place], flags


def _trial(name: str, given: Mapping[str, Any], text: str) -> Trial:
    for key in given:
        if key not in KEYS:
            raise UsageError(f"unknown key {key}; {did_you_mean(str(key), KEYS)}")
    claim = given.get("claim")
    if not isinstance(claim, str) or not claim.strip():
        raise UsageError("claim is missing; state in one sentence what the trial tests")
    seeds = _seeds(given.get("seeds"))
    prepare = tuple(_command(command, PREPARING, "prepare") for command in _list(given.get("prepare"), "prepare"))
    stages: dict[str, Stage] = {}
    for stage, about in _mapping(given.get("stages"), "stages").items():
        stages[str(stage)] = _stage(str(stage), _mapping(about, f"stages.{stage}"), stages)
    _check_folders(stages)
    measures = tuple(_measure(about, stages) for about in _list(given.get("measure"), "measure", whole=True))
    _check_places(measures)
    contrasts: list[Contrast] = []
    for role, key in (("primary", "primary"), ("secondary", "secondary"), ("control", "controls")):
        for about in _list(given.get(key), key, whole=True):
            contrasts += _contrasts(role, _mapping(about, key), stages, measures)
    names = [contrast.name for contrast in contrasts]
    if double := next((each for each in names if names.count(each) > 1), None):
        raise UsageError(f"two contrasts are called {double}; give one of them another `name`")
    if (given.get("secondary") or given.get("controls")) and not given.get("primary"):
        raise UsageError("primary is missing; a trial has one primary outcome, on which its verdict rests")
    return Trial(
        name,
        " ".join(claim.split()),
        seeds,
        stages,
        prepare,
        measures,
        tuple(contrasts),
        given.get("source") and str(given["source"]),
        str(given.get("description") or ""),
        text,
    )


def _seeds(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        what = "missing" if given in (None, []) else "not a list"
        raise UsageError(f"seeds is {what}; list the root seeds, for example [0, 1, 2, 3, 4]")
    seen: set[int] = set()
    for seed in given:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UsageError(f"seeds: {seed} is not a seed; give whole numbers from 0 to 4294967295")
        if seed in seen:
            raise UsageError(f"seeds: {seed} is given twice; a root seed is one replicate")
        seen.add(seed)
    return tuple(int(seed) for seed in given)


def _list(given: Any, key: str, whole: bool = False) -> list[Any]:
    """Return a list, of one element if a text or number is given; `whole`: a mapping is one element."""
    if given is None:
        return []
    if isinstance(given, (str, int, float)) or (whole and isinstance(given, dict)):
        return [given]
    if not isinstance(given, list):
        raise UsageError(f"{key} is not a list; write each entry after a dash")
    return given


def _mapping(given: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(given, dict) or not given:
        raise UsageError(
            f"{key} is {'missing' if given is None else 'not a mapping'}; write `key: value` lines under it"
        )
    return given


def _command(given: Any, programs: Sequence[str], key: str) -> tuple[str, ...]:
    """Return the words of a command after `lm-trials`, whose program is one of `programs`."""
    if not isinstance(given, str) or not given.strip():
        raise UsageError(f"{key}: {given!r} is not a command; write, for example, {programs[0]} ...")
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise UsageError(f"{key}: {given} cannot be read ({error}); close the quotation mark") from None
    if words[0] == "lm-trials":
        words = words[1:]
    first, rest = (words[0], words[1:]) if words else ("", [])
    if first.startswith("probes/"):
        first, rest = "probe", [Path(first).stem, *rest]
    program = SCRIPTS.get(first, first)
    if program not in programs:
        known = [*programs, *(script for script, command in SCRIPTS.items() if command in programs)]
        raise UsageError(f"{key}: {first} is not a program that can be used here; {did_you_mean(first, known)}")
    return (program, *rest)


def _stage(name: str, given: Mapping[str, Any], before: Mapping[str, Stage]) -> Stage:
    key = f"stages.{name}"
    if fault := name_fault(name):
        raise UsageError(f"{key}: the name {fault}; choose another")
    program = _command(given.get("program", ""), TRAINING, f"{key}.program")[0]
    after = None if given.get("after") is None else str(given["after"])
    if after is not None and after not in before:
        valid = did_you_mean(str(after), before) if before else "the first stage cannot follow another"
        raise UsageError(f"{key}.after: {after} is not a stage above it; {valid}")
    shared = {str(flag): value for flag, value in given.items() if flag not in STAGE_KEYS}
    earlier = before[after].arms if after is not None else ()
    arms = given.get("arms")
    if arms is None:
        arms = {arm: {"after": arm} for arm in earlier} or {name: {}}
    flags: dict[str, dict[str, Any]] = {}
    parents: dict[str, str] = {}
    values = parameter_values(given.get("parameters"), f"{key}.parameters")
    for arm, own in _mapping(arms, f"{key}.arms").items():
        about = {} if own is None else own
        if not isinstance(about, dict):
            raise UsageError(f"{key}.arms.{arm}: {own} is not a mapping; write the flags that this arm changes")
        parent = _parent(f"{key}.arms.{arm}", str(arm), about.get("after"), earlier)
        for suffix, point in _grid(values).items():
            full = f"{arm}-{suffix}" if suffix and len(arms) > 1 else suffix or str(arm)
            if fault := name_fault(full):
                raise UsageError(f"{key}: the arm's name {full} {fault}; choose another")
            if full in flags:
                raise UsageError(f"{key}: two arms would be called {full}; rename an arm, or change a value")
            flags[full] = {**shared, **{str(k): v for k, v in about.items() if k != "after"}, **point}
            if parent is not None:
                parents[full] = parent
    for arm, of in flags.items():
        if "config" in of and not recipe_file(str(of["config"])).is_file():
            raise UsageError(f"{key}: config {of['config']} is not a file; give a recipe's name or a YAML file")
        own_flags = (*OWN_FLAGS, "model_name_or_path") if after is not None else OWN_FLAGS
        if own_flag := next((flag for flag in of if flag.replace("-", "_") in own_flags), None):
            raise UsageError(f"{key}: {own_flag} of {arm} is set by the trial itself; remove it")
    grid = tuple(flag for flag, of in values.items() if len(of) > 1)
    return Stage(name, program, flags, after, parents, _varies(key, given.get("varies"), flags), grid)


def _check_folders(stages: Mapping[str, Stage]) -> None:
    """Refuse two runs in one folder, `<stage>-<arm>-s<seed>`, and a name that is too long for one."""
    owners: dict[str, str] = {}
    for stage in stages.values():
        for arm in stage.arms:
            name = f"{stage.name}-{arm}"
            if other := owners.get(name):
                raise UsageError(f"stages: {other} and {stage.name}.{arm} would have one folder {name}; rename one")
            if fault := name_fault(name):
                raise UsageError(f"stages: the folder {name} of {stage.name}.{arm} {fault}; choose shorter names")
            owners[name] = f"{stage.name}.{arm}"


def _parent(key: str, arm: str, after: Any, earlier: Sequence[str]) -> str | None:
    if not earlier:
        if after is not None:
            raise UsageError(f"{key}.after: {after}: its stage has no `after`; name the stage that it follows there")
        return None
    parent = after if after is not None else (arm if arm in earlier else earlier[0] if len(earlier) == 1 else None)
    if parent not in earlier:
        what = (
            f"{after} is not an arm of the stage before" if after is not None else "the arm that it follows is missing"
        )
        raise UsageError(f"{key}.after: {what}; {did_you_mean(str(after), earlier)}")
    return str(parent)


def parameter_values(parameters: Any, key: str) -> dict[str, list[Any]]:
    """Return the values of each parameter of a grid in W&B's format.

    Raises:
        UsageError: for a parameter that is no list of values, as of a random search.
    """
    found: dict[str, list[Any]] = {}
    for flag, about in ({} if parameters is None else _mapping(parameters, key)).items():
        if not isinstance(about, dict) or len(set(about) & {"value", "values"}) != 1 or len(about) > 1:
            raise UsageError(f"{key}.{flag}: give `value: X` or `values: [X, Y]`; other searches are not supported")
        values = about["values"] if "values" in about else [about["value"]]
        if not isinstance(values, list) or not values:
            raise UsageError(f"{key}.{flag}.values: {values} is not a list of values")
        found[str(flag)] = values
    return found


def _grid(values: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Return the points of a grid, by a name that has the values that differ; one point without a grid.

    Raises:
        UsageError: for two points of one name.
    """
    points: dict[str, dict[str, Any]] = {}
    for chosen in itertools.product(*values.values()):
        point = dict(zip(values, chosen, strict=True))
        name = "-".join(plain_name(str(point[flag])) for flag, of in values.items() if len(of) > 1)
        if other := points.get(name):
            both = " and ".join(str(list(map(str, of.values()))) for of in (other, point))
            raise UsageError(f"parameters: the arms of {both} would both be called {name}; make them arms with names")
        points[name] = point
    return points


def _varies(key: str, stated: Any, flags: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the variables in which the arms of a stage differ; several must be stated."""
    names = {name for of in flags.values() for name in of}
    found = sorted(name for name in names if len({str(of.get(name)) for of in flags.values()}) > 1)
    owners = {name: group for group, (members, _) in GROUPS.items() for name in members}
    owners["data_mix"] = "data"
    variables = {owners.get(name, name) for name in found}
    if stated is None and len(variables) > 1:
        raise UsageError(
            f"{key}.arms differ in {', '.join(found)}, so no difference could be attributed to one variable; make them "
            f"equal in all but one, or state `varies: [{', '.join(found)}]`"
        )
    wanted = sorted(map(str, _list(stated, f"{key}.varies")))
    if stated is not None and wanted != found:
        raise UsageError(
            f"{key}.varies says {', '.join(wanted) or 'nothing'}; the arms differ in {', '.join(found) or 'nothing'}"
        )
    return tuple(found)


def _measure(given: Any, stages: Mapping[str, Stage]) -> Measure:
    about = {"command": given} if isinstance(given, str) else _mapping(given, "measure")
    if unknown := next((key for key in about if key not in ("command", "arms")), None):
        raise UsageError(f"measure: unknown key {unknown}; {did_you_mean(str(unknown), ('command', 'arms'))}")
    words = _command(about.get("command"), MEASURING, "measure")
    for word in words:
        flag = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and flag in ("model_name_or_path", "model_dir", "output_dir"):
            raise UsageError(f"measure: --{flag} is set by the trial itself; remove it from: {shlex.join(words)}")
    named = [str(each) for each in _list(about.get("arms"), "measure.arms")] or [list(stages)[-1]]
    arms: list[tuple[str, str]] = []
    for each in named:
        arms += [(each, arm) for arm in stages[each].arms] if each in stages else [_arm(each, "measure.arms", stages)]
    return Measure(words, tuple(dict.fromkeys(arms)))


def _check_places(measures: Sequence[Measure]) -> None:
    """Refuse two commands that write results of one arm to one folder, where the second would replace the first's."""
    seen = set()
    for words, arm in ((measure.words, arm) for measure in measures for arm in measure.arms):
        places = [words[:2] if words[0] == "probe" else words]
        if words[0] == "evaluate":
            split, layout = _given(words, "--dataset_split") or ["validation"], _given(words, "--layout")
            places = [(name, *split, *layout) for name in _given(words, "--dataset_name", "--data_dir") or [""]]
        for place in places:
            if (arm, place) in seen:
                raise UsageError(
                    f"measure: two commands would write the results of {'.'.join(arm)} to one folder; keep one of "
                    f"them: {shlex.join(words)}"
                )
            seen.add((arm, place))


def _arm(text: str, key: str, stages: Mapping[str, Stage], stage: str | None = None) -> tuple[str, str]:
    """Return the (stage, arm) that a text names: `stage.arm`, or an arm of `stage`, by default of the last."""
    first = next((name for name in stages if text.startswith(f"{name}.")), None)
    of, arm = (stage or list(stages)[-1], text) if first is None else (first, text[len(first) + 1 :])
    if arm not in stages[of].arms:
        known = [*stages[of].arms, *(f"{name}.{each}" for name, other in stages.items() for each in other.arms)]
        raise UsageError(f"{key}: {text} is not an arm; {did_you_mean(text, known)}")
    return of, arm


def _contrasts(
    role: str, given: Mapping[str, Any], stages: Mapping[str, Stage], measures: Sequence[Measure]
) -> list[Contrast]:
    """Return the contrasts of one entry: one for each of its `contrast`s."""
    about = dict(given)
    measure = about.get("measure")
    if measure not in MEASURES:
        raise UsageError(f"{role}: measure {measure} is unknown; {did_you_mean(str(measure), MEASURES)}")
    stage = None if (given_stage := about.pop("stage", None)) is None else str(given_stage)
    if stage is not None and stage not in stages:
        raise UsageError(f"{role}: stage {stage} is unknown; {did_you_mean(str(stage), stages)}")
    texts = _list(about.pop("contrast", None), f"{role}.contrast")
    if not texts:
        raise UsageError(f"{role}: contrast is missing, so nothing is tested; write, for example, `contrast: a - b`")
    own_scale = "log2" if measure == "updates_to_threshold" else "identity"
    scale, expect = about.pop("scale", own_scale), about.pop("expect", "greater")
    for name, value, valid in (("scale", scale, SCALES), ("expect", expect, EXPECTATIONS)):
        if value not in valid:
            raise UsageError(f"{role}: {name} {value} is unknown; {did_you_mean(str(value), valid)}")
    margin = _number(text := about.pop("margin", 0.0))
    if margin is None or margin < 0:
        raise UsageError(f"{role}: margin {text} is not a distance; give a number of at least 0")
    if expect in ("equivalent", "not_less", "not_greater") and margin == 0:
        raise UsageError(f"{role}: expect {expect} needs a margin within which a difference does not matter")
    name = about.pop("name", None)
    if measure != "table" and scale != own_scale:
        raise UsageError(f"{role}: scale {scale}: {measure} has the scale {own_scale}; remove the key")
    if measure == "updates_to_threshold":
        about["threshold"] = _threshold(about.get("threshold"), f"{role}.threshold", stages, stage)
    found = []
    for text in map(str, texts):
        first, minus, second = text.partition(" - ")
        arms = [
            _arm(part.strip(), f"{role}.contrast", stages, stage) for part in ([first, second] if minus else [first])
        ]
        label = (
            str(name) if name and len(texts) == 1 else f"{name}: {text}" if name else f"{_outcome_name(about)}: {text}"
        )
        if len(set(arms)) < len(arms):
            raise UsageError(f"{role}: contrast {text} is always 0; name two arms")
        if measure == "updates_to_threshold" and not minus:
            raise UsageError(f"{role}: contrast {text}: times are compared between two arms; write `a - b`")
        contrast = Contrast(label, role, arms[0], arms[1] if minus else None, about, str(scale), str(expect), margin)
        _check_outcome(contrast, stages, measures)
        found.append(contrast)
    return found


def _number(given: Any) -> float | None:
    """Return a finite number as it is written, also `1e-3`, which YAML reads as a text; None for anything else.

    >>> _number("1e-3"), _number(2), _number("5%"), _number(True), _number("inf")
    (0.001, 2.0, None, None, None)
    """
    try:
        number = float(str(given))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _threshold(given: Any, key: str, stages: Mapping[str, Stage], stage: str | None) -> Any:
    """Return a threshold with its arms as [stage, arm]: a number, or reference + share x (value at 0 - reference)."""
    if (number := _number(given)) is not None:
        return number
    if given is not None and not isinstance(given, dict):
        raise UsageError(f"{key}: {given} is not a number; give one, or reference, from and share")
    about, keys = dict(_mapping(given, key)), ("reference", "from", "share", "reference_metric")
    if unknown := next((each for each in about if each not in keys), None):
        raise UsageError(f"{key}: unknown key {unknown}; {did_you_mean(str(unknown), keys)}")
    if missing := next((each for each in keys[:3] if each not in about), None):
        raise UsageError(f"{key}: {missing} is missing; give a number, or {', '.join(keys[:3])}")
    share = _number(about["share"])
    if share is None or not 0 < share < 1:
        raise UsageError(f"{key}.share: {about['share']} is not a share; give a number between 0 and 1")
    arms = {each: list(_arm(str(about[each]), f"{key}.{each}", stages, stage)) for each in keys[:2]}
    return {**about, **arms, "share": share}


def _outcome_name(outcome: Mapping[str, Any]) -> str:
    """Return the default name of an outcome.

    >>> _outcome_name({"measure": "loss", "dataset": "recovery-Twist"})
    'loss on recovery-Twist'
    """
    if outcome["measure"] == "loss":
        sets = outcome.get("dataset")
        return f"loss on {', '.join(map(str, sets)) if isinstance(sets, list) else sets}"
    if outcome["measure"] == "updates_to_threshold":
        return "updates to threshold"
    return Path(str(outcome.get("table", "table"))).stem.replace("_", " ")


OUTCOME_KEYS = {
    "loss": ("dataset", "unit", "sentences_with", "worth"),
    "table": ("table", "where"),
    "updates_to_threshold": ("metric", "threshold", "horizon"),
}


def _check_outcome(contrast: Contrast, stages: Mapping[str, Stage], measures: Sequence[Measure]) -> None:
    """Check that a measure of the trial, or the training itself, gives the outcome for the arms of a contrast."""
    outcome, role = contrast.outcome, contrast.role
    kind = outcome["measure"]
    keys = ("measure", *OUTCOME_KEYS[kind])
    if unknown := next((key for key in outcome if key not in keys), None):
        raise UsageError(f"{role}: unknown key {unknown} of measure {kind}; {did_you_mean(str(unknown), keys)}")
    needed = OUTCOME_KEYS[kind][0]
    if not outcome.get(needed):
        raise UsageError(f"{role}: measure {kind} needs {needed}")
    if "unit" in outcome and outcome["unit"] not in UNITS:
        raise UsageError(f"{role}: unit {outcome['unit']} is unknown; {did_you_mean(str(outcome['unit']), UNITS)}")
    if "horizon" in outcome and ((horizon := _number(outcome["horizon"])) is None or horizon <= 0):
        raise UsageError(f"{role}: horizon {outcome['horizon']} is no number of updates; give one above 0")
    if not isinstance(outcome.get("where") or {}, (dict, list)):
        raise UsageError(f"{role}: where is not a mapping; write `column: value` lines under it")
    for arm in filter(None, (contrast.first, contrast.second)):
        commands = [measure.words for measure in measures if arm in measure.arms]
        if kind == "loss":
            feature = outcome.get("sentences_with")
            needs = f" --sentences_with {feature}" if feature else ""
            for name in _list(outcome["dataset"], f"{role}.dataset"):
                if not any(
                    words[0] == "evaluate"
                    and _evaluates(words, str(name))
                    and (not feature or str(feature) in _given(words, "--sentences_with"))
                    for words in commands
                ):
                    raise UsageError(
                        f"{role}: no `measure` evaluates {'.'.join(arm)} on {name}{needs and f' with{needs}'}; "
                        f"add: evaluate --dataset_name {name}{needs}"
                    )
        elif kind == "table":
            place = Path(str(outcome["table"])).parts
            program = {"probes": "probe", "eval": "evaluate"}.get(place[0] if place else "", "")
            if not any(words[0] == program and (program != "probe" or words[1:2] == place[1:2]) for words in commands):
                raise UsageError(
                    f"{role}: no `measure` writes {outcome['table']} for {'.'.join(arm)}; add the command that does"
                )
        else:
            metric = str(outcome["metric"])
            flags = stages[arm[0]].flags[arm[1]]
            sets = str(flags.get("eval_datasets") or "").split(",")
            if (
                metric.startswith("eval_")
                and sets != [""]
                and not any(metric.startswith(f"eval_{name}_") for name in sets)
            ):
                raise UsageError(f"{role}: {metric} is not logged by {'.'.join(arm)}, whose eval_datasets are {sets}")


def _evaluates(words: Sequence[str], dataset: str) -> bool:
    """Whether a command evaluates on a data set: given by its name, or by a name without the split.

    >>> _evaluates(("evaluate", "--dataset_name", "recovery-Twist"), "recovery-Twist-validation")
    True
    >>> _evaluates(("evaluate", "--dataset_name", "recovery"), "recoveryTwist")
    False
    """
    given = _given(words, "--dataset_name", "--data_dir")
    names = [plain_name(Path(each).name.partition(".")[0]) for each in given]
    return any(dataset == name or dataset.startswith(f"{name}-") for name in names)


def _given(words: Sequence[str], *flags: str) -> list[str]:
    """Return the values that a command gives to flags."""
    return [
        value
        for place, word in enumerate(words)
        if word.partition("=")[0] in flags
        for value in (
            [word.partition("=")[2]]
            if "=" in word
            else itertools.takewhile(lambda each: not each.startswith("--"), words[place + 1 :])
        )
    ]
