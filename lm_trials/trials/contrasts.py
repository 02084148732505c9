"""Contrasts of a trial file: what is claimed of which arms, and that a measure or the training gives the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import plain_name
from lm_trials.flags import read_config, recipe_file
from lm_trials.trials.entries import as_list, as_mapping, as_number, check_keys, flags_of, one_of
from lm_trials.trials.trial import ArmName, Contrast, Measure, Stage

ROLES = {"primary": "primary", "secondary": "secondary", "controls": "control"}
"""The role of the contrasts under each key of a trial file."""
# Of each measure, the keys of its outcome; the first is needed.
OUTCOME_KEYS = {
    "loss": ("dataset", "unit", "sentences_with", "worth"),
    "table": ("table", "where"),
    "updates_to_threshold": ("metric", "threshold", "horizon"),
}
SCALES = ("identity", "log", "log2", "logit")
UNITS = ("nats per token", "bits per byte")  # of losses; `evaluations` changes to bits where tokens differ
EXPECTATIONS = ("greater", "less", "equivalent", "not_less", "not_greater")


def read_contrasts(
    given: Mapping[str, Any], stages: Mapping[str, Stage], measures: Sequence[Measure]
) -> tuple[Contrast, ...]:
    """Return the contrasts of a trial file, each with a name of its own."""
    found: list[Contrast] = []
    for key, role in ROLES.items():
        for about in as_list(given.get(key)):
            found += _contrasts(role, dict(as_mapping(about, key)), stages, measures)
    names = [contrast.name for contrast in found]
    if double := next((each for each in names if names.count(each) > 1), None):
        raise UsageError(f"two contrasts are called {double}; give one of them another `name`")
    if found and not given.get("primary"):
        raise UsageError("primary is missing; a trial has one primary outcome, on which its verdict rests")
    return tuple(found)


def _contrasts(
    role: str, about: dict[str, Any], stages: Mapping[str, Stage], measures: Sequence[Measure]
) -> list[Contrast]:
    """Return the contrasts of one entry: one for each of its `contrast`s."""
    measure = one_of(about.get("measure"), tuple(OUTCOME_KEYS), f"{role}: measure")
    stage = one_of(str(about.pop("stage", None) or list(stages)[-1]), stages, f"{role}: stage")
    texts = as_list(about.pop("contrast", None))
    if not texts:
        raise UsageError(f"{role}: contrast is missing, so nothing is tested; write, for example, `contrast: a - b`")
    own_scale = "log2" if measure == "updates_to_threshold" else "identity"
    scale = one_of(about.pop("scale", own_scale), SCALES, f"{role}: scale")
    expect = one_of(about.pop("expect", "greater"), EXPECTATIONS, f"{role}: expect")
    margin = as_number(text := about.pop("margin", 0.0))
    if margin is None or margin < 0:
        raise UsageError(f"{role}: margin {text} is not a distance; give a number of at least 0")
    if expect in ("equivalent", "not_less", "not_greater") and margin == 0:
        raise UsageError(f"{role}: expect {expect} needs a margin within which a difference does not matter")
    name = about.pop("name", None)
    if measure != "table" and scale != own_scale:
        raise UsageError(f"{role}: scale {scale}: {measure} has the scale {own_scale}; remove the key")
    if measure == "updates_to_threshold":
        about["threshold"] = _threshold(about.get("threshold"), f"{role}.threshold", stages, stage)
    _check_keys(role, measure, about)
    found = []
    for text in map(str, texts):
        parts = [part.strip() for part in text.split(" - ", 1)]
        arms = [arm_named(part, f"{role}.contrast", stages, stage) for part in parts]
        if len(set(arms)) < len(arms):
            raise UsageError(f"{role}: contrast {text} is always 0; name two arms")
        if len(arms) == 1 and measure == "updates_to_threshold":
            raise UsageError(f"{role}: contrast {text}: times are compared between two arms; write `a - b`")
        label = str(name) if name and len(texts) == 1 else f"{name or _outcome_name(about)}: {text}"
        second = arms[1] if len(arms) > 1 else None
        found.append(Contrast(label, role, arms[0], second, about, scale, expect, margin))
        _check_outcome(found[-1], stages, measures)
    return found


def arm_named(text: str, key: str, stages: Mapping[str, Stage], stage: str) -> ArmName:
    """Return the (stage, arm) that a text names: `stage.arm`, or an arm of `stage`."""
    first = next((name for name in stages if text.startswith(f"{name}.")), None)
    of, arm = (stage, text) if first is None else (first, text[len(first) + 1 :])
    if arm not in stages[of].arms:
        known = [*stages[of].arms, *(f"{name}.{each}" for name, other in stages.items() for each in other.arms)]
        raise UsageError(f"{key}: {text} is not an arm; {did_you_mean(text, known)}")
    return of, arm


def _threshold(given: Any, key: str, stages: Mapping[str, Stage], stage: str) -> Any:
    """Return a threshold, with its arms as [stage, arm].

    It is a number, reference + share x (value at 0 - reference), or a share of what an injection taught.
    """
    if (number := as_number(given)) is not None:
        return number
    if given is not None and not isinstance(given, dict):
        raise UsageError(f"{key}: {given} is not a number; give one, or reference, from and share")
    about = dict(as_mapping(given, key))
    needed: tuple[str, ...] = ("reference", "from", "share")
    more: tuple[str, ...] = ("reference_metric",)
    if "injection" in about:
        needed, more = ("injection", "reference", "share"), ()
        one_of(about["injection"], ("learned", "forgotten"), f"{key}.injection")
    check_keys(about, (*needed, *more), f"{key}: ")
    if missing := next((each for each in needed if each not in about), None):
        raise UsageError(f"{key}: {missing} is missing; give a number, or {', '.join(needed)}")
    share = as_number(about["share"])
    if share is None or not 0 < share < 1:
        raise UsageError(f"{key}.share: {about['share']} is not a share; give a number between 0 and 1")
    named = [each for each in ("reference", "from") if each in needed]
    arms = {each: list(arm_named(str(about[each]), f"{key}.{each}", stages, stage)) for each in named}
    return {**about, **arms, "share": share}


def _outcome_name(outcome: Mapping[str, Any]) -> str:
    """Return the default name of an outcome.

    >>> _outcome_name({"measure": "loss", "dataset": "recovery-Twist"})
    'loss on recovery-Twist'
    """
    if outcome["measure"] == "loss":
        return f"loss on {', '.join(map(str, as_list(outcome['dataset'])))}"
    if outcome["measure"] == "updates_to_threshold":
        return "updates to threshold"
    return Path(str(outcome["table"])).stem.replace("_", " ")


def _check_keys(role: str, measure: str, outcome: Mapping[str, Any]) -> None:
    """Check the keys of an outcome and those of their values that do not depend on the arms."""
    keys = OUTCOME_KEYS[measure]
    check_keys(outcome, ("measure", *keys), f"{role}: ", f" of measure {measure}")
    if not outcome.get(keys[0]):
        raise UsageError(f"{role}: measure {measure} needs {keys[0]}")
    if "unit" in outcome:
        one_of(outcome["unit"], UNITS, f"{role}: unit")
    if "horizon" in outcome and (as_number(outcome["horizon"]) or 0) <= 0:
        raise UsageError(f"{role}: horizon {outcome['horizon']} is no number of updates; give one above 0")
    if not isinstance(outcome.get("where") or {}, (dict, list)):
        raise UsageError(f"{role}: where is not a mapping; write `column: value` lines under it")


def _check_outcome(contrast: Contrast, stages: Mapping[str, Stage], measures: Sequence[Measure]) -> None:
    """Check that a measure of the trial, or the training itself, gives the outcome for the arms of a contrast."""
    outcome, role = contrast.outcome, contrast.role
    for arm in contrast.arms:
        commands = [measure.words for measure in measures if arm in measure.arms]
        shown = ".".join(arm)
        if outcome["measure"] == "loss":
            _check_evaluated(contrast, arm, commands, stages[arm[0]])
        elif outcome["measure"] == "table":
            top, *rest = [*Path(str(outcome["table"])).parts, ""]
            scoring = {"constraints": "constraints", "latent_city": "latent-city"}.get(
                rest[0].partition("-")[0], "evaluate"
            )
            wanted = {"probes": ("probe", *rest[:1]), "eval": (scoring,)}.get(top)
            if not any(words[: len(wanted)] == wanted for words in commands if wanted):
                raise UsageError(
                    f"{role}: no `measure` writes {outcome['table']} for {shown}; add the command that does"
                )
        else:
            injected = "injection" in threshold if isinstance(threshold := outcome["threshold"], dict) else False
            _check_logged(role, str(outcome["metric"]), stages, arm, several=injected)
    if "worth" in outcome:
        if contrast.second is None:
            raise UsageError(f"{role}: worth: {contrast.name} has no second arm, whose tokens count; write `a - b`")
        _check_logged(role, str(outcome["worth"]), stages, contrast.second, several=True)


def _check_evaluated(contrast: Contrast, arm: ArmName, commands: Sequence[Sequence[str]], stage: Stage) -> None:
    """Check that a command evaluates an arm on the data sets of a loss, with the sentences that it asks for.

    A fine-tuning evaluates the completions of its own validation examples.
    """
    feature = contrast.outcome.get("sentences_with")
    needs = f" --sentences_with {feature}" if feature else ""
    trained = plain_name(str(stage.flags[arm[1]].get("dataset_name")))
    own = f"{trained}-completions" if stage.program == "tune" else None
    for name in as_list(contrast.outcome["dataset"]):
        if not any(
            words[0] == "evaluate"
            and _evaluates(words, str(name))
            and (not feature or str(feature) in flags_of(words).get("sentences_with", []))
            for words in commands
        ) and (feature or name != own):
            raise UsageError(
                f"{contrast.role}: no `measure` evaluates {'.'.join(arm)} on {name}{needs and f' with{needs}'}; "
                f"add: evaluate --dataset_name {name}{needs}"
            )


def _evaluates(words: Sequence[str], dataset: str) -> bool:
    """Whether a command evaluates on a data set: given by its name, or by a name without the split.

    >>> _evaluates(("evaluate", "--dataset_name", "recovery-Twist"), "recovery-Twist-validation")
    True
    >>> _evaluates(("evaluate", "--dataset_name", "recovery"), "recoveryTwist")
    False
    """
    flags = flags_of(words)
    given = flags.get("dataset_name", []) + flags.get("data_dir", [])
    names = [plain_name(Path(each).name.partition(".")[0]) for each in given]
    return any(dataset == name or dataset.startswith(f"{name}-") for name in names)


def _check_logged(role: str, metric: str, stages: Mapping[str, Stage], arm: ArmName, several: bool = False) -> None:
    """Check that the training of an arm logs a metric; `several`: also before its end."""
    given = stages[arm[0]].flags[arm[1]]
    recipe = read_config(recipe_file(str(given["config"])), given.get("arm")) if "config" in given else {}
    flags = {**recipe, **given}
    sets = [name.strip() for name in str(flags.get("eval_datasets") or "").split(",") if name.strip()]
    if metric.startswith("eval_") and sets and not any(metric.startswith(f"eval_{name}_") for name in sets):
        raise UsageError(f"{role}: {metric} is not logged by {'.'.join(arm)}, whose eval_datasets are {sets}")
    if several and flags.get("eval_strategy", "no") == "no" and not as_number(flags.get("dense_eval_steps")):
        raise UsageError(
            f"{role}: {metric} of {'.'.join(arm)} is no learning curve, as it is logged once, at the end; set "
            f"eval_strategy: steps in stages.{arm[0]}"
        )
