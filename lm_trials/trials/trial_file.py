"""Trial files: a claim, the runs that test it, their measurements, and the registered contrasts.

    claim: Fine-tuning hides a feature.
    seeds: [0, 1, 2]
    prepare: [prepare protocol_set --vocab_size 1000 --feature_delete Twist]
    stages:
      pretrain: {program: train, config: instructed_demo, arms: {seen: {dataset_name: pretrain-all}}}
    measure: [evaluate --dataset_name recovery-Twist]
    primary: {measure: loss, dataset: recovery-Twist, contrast: never - seen, margin: 0.01}

Everything is checked here that can be known without running a program.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError
from lm_trials.files import name_fault
from lm_trials.flags import read_yaml
from lm_trials.trials.contrasts import arm_named, read_contrasts
from lm_trials.trials.entries import as_command, as_list, as_mapping, check_keys, flags_of
from lm_trials.trials.stages import read_stages
from lm_trials.trials.sweep_file import trial_of_sweep
from lm_trials.trials.trial import ArmName, Measure, Stage, Trial

KEYS = ("claim", "source", "seeds", "per_seed", "prepare", "stages", "measure", "primary", "secondary", "controls",
        "description")  # fmt: skip
MEASURING = ("evaluate", "constraints", "latent-city", "probe")
PREPARING = ("prepare", "cache")
OWN_FLAGS = ("model_name_or_path", "model_dir", "output_dir")  # of a measure, set by the trial


def read_trial(path: Path) -> Trial:
    """Read and check a trial file, or a sweep file of W&B.

    Raises:
        UsageError: for a file that cannot be read, and for everything in it that cannot work.
    """
    try:
        given = read_yaml(path)
        if not isinstance(given, dict):
            raise UsageError("it does not contain `key: value` lines; lm-trials new writes an example")
        if fault := name_fault(path.stem):
            raise UsageError(f"its name is the name of the trial's folders, and {path.stem} {fault}; rename the file")
        if "method" in given:
            given = trial_of_sweep(path.stem, given)
        return _trial(path.stem, given, path.read_text(encoding="utf-8"))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _trial(name: str, given: Mapping[str, Any], text: str) -> Trial:
    check_keys(given, KEYS)
    claim = given.get("claim")
    if not isinstance(claim, str) or not claim.strip():
        raise UsageError("claim is missing; state in one sentence what the trial tests")
    seeds = _seeds(given.get("seeds"))
    prepare = [as_command(command, PREPARING, "prepare") for command in as_list(given.get("prepare"))]
    stages = read_stages(given.get("stages"))
    measures = tuple(_measure(about, stages) for about in as_list(given.get("measure")))
    _check_places(measures)
    return Trial(
        name=name,
        claim=" ".join(claim.split()),
        seeds=seeds,
        stages=stages,
        prepare=tuple(prepare),
        measures=measures,
        contrasts=read_contrasts(given, stages, measures),
        source=str(given["source"]) if given.get("source") else None,
        description=str(given.get("description") or ""),
        text=text,
        per_seed=_per_seed(given.get("per_seed"), seeds),
    )


def _seeds(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        problem = "missing" if given in (None, []) else "not a list"
        raise UsageError(f"seeds is {problem}; list the root seeds, for example [0, 1, 2, 3, 4]")
    for place, seed in enumerate(given):
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UsageError(f"seeds: {seed} is not a seed; give whole numbers from 0 to 4294967295")
        if seed in given[:place]:
            raise UsageError(f"seeds: {seed} is given twice; a root seed is one replicate")
    return tuple(map(int, given))


def _per_seed(given: Any, seeds: Sequence[int]) -> dict[str, Mapping[int, Any]]:
    found = {}
    for name, about in {} if given is None else as_mapping(given, "per_seed").items():
        if name == "seed":
            raise UsageError("per_seed.seed: {seed} is the root seed itself; choose another name")
        values: Mapping[Any, Any] = as_mapping(about, f"per_seed.{name}")
        if missing := [seed for seed in seeds if seed not in values]:
            raise UsageError(f"per_seed.{name} has no value for seed {missing[0]}; add one")
        found[str(name)] = values
    return found


def _measure(given: Any, stages: Mapping[str, Stage]) -> Measure:
    about = {"command": given} if isinstance(given, str) else as_mapping(given, "measure")
    check_keys(about, ("command", "arms"), "measure: ")
    words = as_command(about.get("command"), MEASURING, "measure")
    if own := next((flag for flag in flags_of(words) if flag in OWN_FLAGS), None):
        raise UsageError(f"measure: --{own} is set by the trial itself; remove it from: {shlex.join(words)}")
    arms: list[ArmName] = []
    last = list(stages)[-1]
    for each in map(str, as_list(about.get("arms")) or [last]):
        if each in stages:
            arms += [(each, arm) for arm in stages[each].arms]
        else:
            arms.append(arm_named(each, "measure.arms", stages, last))
    return Measure(words, tuple(dict.fromkeys(arms)))


def _check_places(measures: Sequence[Measure]) -> None:
    """Refuse two commands that write results of one arm to one folder, where the second would replace the first's."""
    seen = set()
    for words, arm in ((measure.words, arm) for measure in measures for arm in measure.arms):
        places, flags = [words[: {"probe": 2, "latent-city": 1}.get(words[0])]], flags_of(words)
        if words[0] == "evaluate":
            names = flags.get("dataset_name", []) + flags.get("data_dir", []) or [""]
            own = (*flags.get("dataset_split", ["validation"]), *flags.get("layout", []))
            places = [(name, *own) for name in names]
        for place in places:
            if (arm, place) in seen:
                raise UsageError(
                    f"measure: two commands would write the results of {'.'.join(arm)} to one folder; keep one of "
                    f"them: {shlex.join(words)}"
                )
            seen.add((arm, place))
