"""What a trial is, once its file is read and checked: stages of arms, measures, and registered contrasts."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lm_trials.console import UsageError
from lm_trials.flags import recipe_file

ArmName = tuple[str, str]  # (stage, arm)


@dataclass(frozen=True)
class Stage:
    """One grid of runs: each arm with each root seed.

    Attributes:
        program: train, tune or align.
        flags: of each arm, by the program's names.
        parents: the arm of `after` that each arm starts from; empty for the first stage of a lineage.
        varies: the flags in which the arms differ.
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
    """

    words: tuple[str, ...]
    arms: tuple[ArmName, ...]


@dataclass(frozen=True)
class Contrast:
    """One registered comparison: first minus second, per root seed.

    Attributes:
        role: primary, secondary or control.
        second: None for a value compared with 0.
        outcome: what is measured: `measure` and the keys that belong to it, as in the file.
        expect: the claimed direction; of a control, the direction that would invalidate the trial.
        margin: in the unit of `scale`; the difference must lie beyond it (or, for `equivalent`, within it).
    """

    name: str
    role: str
    first: ArmName
    second: ArmName | None
    outcome: Mapping[str, Any]
    scale: str = "identity"
    expect: str = "greater"
    margin: float = 0.0

    @property
    def arms(self) -> tuple[ArmName, ...]:
        """The one or two arms."""
        return (self.first,) if self.second is None else (self.first, self.second)


@dataclass(frozen=True)
class Trial:
    """A trial file, checked.

    Attributes:
        name: the file's name without its ending; runs go to `runs/<name>`, results to `results/<name>`.
        text: the file as it is.
        per_seed: by name, the value of each root seed that `{name}` stands for in flags and commands.
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
    per_seed: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)

    def filled(self, given: Any, seed: int) -> Any:
        """Return a flag's value or the words of a command with `{seed}` and the names of `per_seed` replaced.

        Raises:
            UsageError: for a name without a value for this seed.
        """
        if isinstance(given, (list, tuple)):
            return type(given)(self.filled(each, seed) for each in given)
        for name, values in {"seed": {seed: seed}, **self.per_seed}.items() if isinstance(given, str) else ():
            if f"{{{name}}}" in given:
                if seed not in values:
                    raise UsageError(f"per_seed.{name} has no value for seed {seed}; add one")
                given = given.replace(f"{{{name}}}", str(values[seed]))
        return given

    @property
    def common_bases(self) -> tuple[str, ...]:
        """The `model_name_or_path` of stages that name the same one for all root seeds."""
        given = [of.get("model_name_or_path") for stage in self.stages.values() for of in stage.flags.values()]
        return tuple(dict.fromkeys(str(name) for name in given if name is not None and "{" not in str(name)))

    def preparations(self) -> list[tuple[int, tuple[str, ...]]]:
        """Return the commands of `prepare` with their places; one that differs between root seeds once for each."""
        return [
            (place, words)
            for place, given in enumerate(self.prepare)
            for words in dict.fromkeys(self.filled(given, seed) for seed in self.seeds)
        ]

    def of(self, role: str) -> list[Contrast]:
        """Return the contrasts of one role: primary, secondary or control."""
        return [contrast for contrast in self.contrasts if contrast.role == role]

    @property
    def registered(self) -> dict[str, Any]:
        """What a registration fixes, as values of JSON: `runs` (what is trained and measured) and `test` (the rest)."""
        stages = {
            name: {
                "program": stage.program,
                "after": stage.after,
                "arms": {arm: {"parent": stage.parents.get(arm), **_texts(of)} for arm, of in stage.flags.items()},
            }
            for name, stage in self.stages.items()
        }
        measures = [{"command": shlex.join(of.words), "arms": [*map(".".join, of.arms)]} for of in self.measures]
        contrasts = [
            {
                **asdict(contrast),
                "first": ".".join(contrast.first),
                "second": contrast.second and ".".join(contrast.second),
                "outcome": json.loads(json.dumps(contrast.outcome, default=str)),
            }
            for contrast in self.contrasts
        ]
        return {
            "runs": {"prepare": [*map(shlex.join, self.prepare)], "stages": stages, "measure": measures},
            "test": {
                "claim": self.claim,
                "seeds": list(self.seeds),
                "contrasts": contrasts,
                **({"per_seed": {name: _texts(of) for name, of in self.per_seed.items()}} if self.per_seed else {}),
            },
        }

    @property
    def digest(self) -> str:
        """The SHA-256 of what is registered, in 16 characters."""
        return hashlib.sha256(json.dumps(self.registered, sort_keys=True).encode()).hexdigest()[:16]


def _texts(flags: Mapping[Any, Any]) -> dict[str, str]:
    """Return flags as texts, of a recipe also the digest of its file."""
    texts = {str(key): str(value) for key, value in flags.items()}
    if "config" in flags:
        texts["config_sha256"] = hashlib.sha256(recipe_file(texts["config"]).read_bytes()).hexdigest()[:16]
    return texts
