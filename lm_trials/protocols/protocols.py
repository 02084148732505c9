"""Protocols: named, versioned, seeded changes to the records, read from the flags of the deletion and recovery study.

A protocol filters records, relabels them (mix_match), adds labels that are not true (adversarial), refuses, and applies
named transforms; it says which instruction lines are shown.  The order is fixed: filter, mix_match, adversarial,
refusal, transforms, render.  This module is what a protocol *is*; `columns` applies it to records, `transforms` has the
named transforms, `instructions` writes the texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lm_trials.console import UsageError, did_you_mean
from lm_trials.protocols.transforms import TransformStep, parse_transforms
from lm_trials.stories.features import FEATURES

Key = Literal["features", "words", "length"]
FeatureStyle = Literal["canonical", "capitalized"]
KEYS: tuple[Key, ...] = ("features", "words", "length")
LIST_KEYS: tuple[Key, ...] = ("features", "words")
LINES = ("Words", "Features", "Summary", "Sentence")
VERSION = 1
LONGEST_PART = 60
LONGEST_NAME = 255  # bytes of a file's name on Linux and macOS
REFUSAL_TEXT = "Sorry, this is a story that we will not tell: we do not write stories with {feature}."


@dataclass(frozen=True)
class Condition:
    """A condition on a record: a value in a list, or a story longer than so many characters; or its negation."""

    key: Key
    value: str
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.key}{'!=' if self.negated else '='}{self.value}"


@dataclass(frozen=True)
class Replacement:
    """A label put in another's place: what the record says is then a lie."""

    key: Key
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}:{self.old}={self.new}"


@dataclass(frozen=True)
class Chance:
    """A value added to a record's list with a probability."""

    key: Key
    value: str
    probability: float

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.probability!r}"


@dataclass(frozen=True)
class Protocol:
    """Everything that decides what a record becomes, beside the record itself.

    >>> Protocol(filtering=parse_filtering("features!=Twist")).name()
    'F_features_x_Twist_MM_none_AT_none_RF_none_IS_none'
    """

    filtering: tuple[Condition, ...] = ()
    mix_match: tuple[Replacement, ...] = ()
    adversarial: tuple[Chance, ...] = ()
    refusal: tuple[Chance, ...] = ()
    transforms: tuple[TransformStep, ...] = ()
    refusal_text: str = REFUSAL_TEXT
    instruction_subset: tuple[str, ...] = LINES
    feature_style: FeatureStyle = "canonical"
    seed: int = 0
    version: int = VERSION

    def name(self) -> str:
        """Return a readable name, the one that the study's script gives such a set."""
        subset = "" if self.instruction_subset == LINES else ",".join(self.instruction_subset)
        parts = {
            "F": ",".join(map(str, self.filtering)),
            "MM": ",".join(map(str, self.mix_match)),
            "AT": ",".join(map(str, self.adversarial)),
            "RF": ",".join(map(str, self.refusal)),
            "IS": subset,
        }
        if self.transforms:
            parts["TR"] = ",".join(map(str, self.transforms))
        name = "_".join(f"{short}_{_file_name(text)}" for short, text in parts.items())
        if len(name.encode()) > LONGEST_NAME:
            name = _shortened(
                name, "_".join(map(str, parts.values())), LONGEST_NAME // 4
            )  # a letter has 4 bytes at most
        return name

    @property
    def changes_story(self) -> bool:
        """Whether it changes more of a record than its labels."""
        return any(step.changes_story for step in self.transforms)

    def changes(self, key: Key) -> bool:
        """Say whether it may change the lists of this key."""
        return bool(self.transforms) or any(
            part.key == key for part in (*self.mix_match, *self.adversarial, *self.refusal)
        )

    def uses(self, key: Key) -> bool:
        """Say whether it looks at or changes this key."""
        return self.changes(key) or any(condition.key == key for condition in self.filtering)

    def as_dict(self) -> dict[str, Any]:
        """Return what a manifest holds of it; equal protocols give equal dicts."""
        described = dataclasses.asdict(self)
        for field in ("filtering", "mix_match", "adversarial", "refusal", "transforms"):
            described[field] = [str(part) for part in getattr(self, field)]
        described["instruction_subset"] = list(self.instruction_subset)
        if self.transforms:
            described["transform_versions"] = [step.transform.version for step in self.transforms]
        else:
            del described["transforms"]  # sets without any are described as before there were transforms
        return described


def _file_name(text: str) -> str:
    """Write an expression as part of a file's name, with characters that every file system accepts.

    >>> _file_name("words!=a/b,length=5"), len(_file_name("words=" + 99 * "x"))
    ('words_x_a_b_length_5', 60)
    """
    name = re.sub(r"[^\w.-]", "_", text.replace("!=", "_x_")) or "none"
    return name if len(name) <= LONGEST_PART else _shortened(name, text, LONGEST_PART)


def _shortened(name: str, text: str, length: int) -> str:
    """Cut a name that is too long; a hash of the whole text keeps it apart from others."""
    return f"{name[: length - 11]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def parse_filtering(text: str | None) -> tuple[Condition, ...]:
    """Read `features=Twist,words!=dog,length=200`: all conditions must hold.

    `length=200` keeps stories of more than 200 characters, `length!=200` those of at most 200.

    Raises:
        UsageError: for a broken expression, an unknown key, or a length that is no whole number.

    >>> [str(condition) for condition in parse_filtering("features!=Twist,length=200")]
    ['features!=Twist', 'length=200']
    """
    conditions = []
    usage = "is no condition; write key=value or key!=value, as features!=Twist"
    for part, match in _parts(text, r"(\w+)\s*(!?=)\s*([^=!:]+?)", "--filtering", usage):
        key = _key(match[1], KEYS, "--filtering")
        if key == "length" and not re.fullmatch("[0-9]+", match[3]):
            raise UsageError(f"--filtering {part!r}: a length is a number of characters, as length=200")
        conditions.append(Condition(key, _value(key, match[3]), match[2] == "!="))
    return tuple(conditions)


def parse_mix_match(text: str | None) -> tuple[Replacement, ...]:
    """Read `features:Foreshadowing=Twist`, or `features=Foreshadowing:Twist` as the study's script spells it.

    Any number of pairs, several for one key among them; they act in order, each on the result of the one before.

    Raises:
        UsageError: for a broken expression or an unknown key.

    >>> parse_mix_match("features:Foreshadowing=Twist") == parse_mix_match("features=Foreshadowing:Twist")
    True
    """
    pairs = []
    usage = "is no replacement; write key:old=new, as features:Conflict=Twist"
    for _, match in _parts(text, r"(\w+)\s*[:=]\s*([^=:!]+?)\s*[:=]\s*([^=:!]+?)", "--mix_match", usage):
        key = _key(match[1], LIST_KEYS, "--mix_match")
        pairs.append(Replacement(key, _value(key, match[2]), _value(key, match[3])))
    return tuple(pairs)


def parse_chances(text: str | None, flag: str) -> tuple[Chance, ...]:
    """Read `features=Twist:0.5,...`, the conditions of `--adversarial_training` and `--refusal`.

    Raises:
        UsageError: for a broken expression, an unknown key, a probability outside 0..1, or a value named twice.

    >>> [str(chance) for chance in parse_chances("features=Twist:0.5", "--refusal")]
    ['features=Twist:0.5']
    """
    chances: list[Chance] = []
    usage = "is no condition; write key=value:probability, as features=Twist:0.5"
    for part, match in _parts(text, r"(\w+)\s*=\s*([^=:!]+?)\s*:\s*([^=:!]+?)", flag, usage):
        key = _key(match[1], LIST_KEYS, flag)
        try:
            probability = float(match[3])
        except ValueError:
            probability = math.nan
        if not 0 <= probability <= 1:
            raise UsageError(f"{flag} {part!r}: {match[3]} is no probability; give a number from 0 to 1")
        chance = Chance(key, _value(key, match[2]), probability)
        if any((other.key, other.value) == (chance.key, chance.value) for other in chances):
            raise UsageError(f"{flag} {text}: {chance.key}={chance.value} stands twice; give it once")
        chances.append(chance)
    return tuple(chances)


def parse_subset(text: str | None) -> tuple[str, ...]:
    """Read `Words,Features` as the instruction lines to show; none given means all four.

    >>> parse_subset("Features,Words")
    ('Words', 'Features')
    """
    if not text:
        return LINES
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in LINES:
            raise UsageError(f"--instruction_subset {name}: {did_you_mean(name, LINES)}")
    return tuple(line for line in LINES if line in names)


def protocol_from_dict(described: dict[str, Any]) -> Protocol:
    """Read what `Protocol.as_dict` wrote.

    >>> protocol = Protocol(mix_match=parse_mix_match("features:Conflict=Twist"), seed=3)
    >>> protocol_from_dict(protocol.as_dict()) == protocol
    True
    """
    parts = {key: ",".join(described[key]) for key in ("filtering", "mix_match", "adversarial", "refusal")}
    return Protocol(
        filtering=parse_filtering(parts["filtering"]),
        mix_match=parse_mix_match(parts["mix_match"]),
        adversarial=parse_chances(parts["adversarial"], "adversarial"),
        refusal=parse_chances(parts["refusal"], "refusal"),
        transforms=parse_transforms(described.get("transforms", ())),
        instruction_subset=tuple(described["instruction_subset"]),
        **{key: described[key] for key in ("refusal_text", "feature_style", "seed", "version")},
    )


def parse_protocol(
    filtering: str | None = None,
    mix_match: str | None = None,
    adversarial_training: str | None = None,
    refusal: str | None = None,
    transform: Sequence[str] = (),
    refusal_text: str | None = None,
    instruction_subset: str | None = None,
    feature_style: FeatureStyle = "canonical",
    seed: int = 0,
) -> Protocol:
    """Read a protocol from the values of the command line's flags."""
    text = refusal_text or REFUSAL_TEXT
    try:
        named = text.format(feature="") != text.format(feature="x")
    except (KeyError, IndexError, ValueError):  # another field than {feature}, or a brace that is not closed
        named = False
    if not named or "\n" in text:
        raise UsageError(
            f"--refusal_text {text!r} is no line that names the feature; put {{feature}} where its name shall stand"
        )
    return Protocol(
        filtering=parse_filtering(filtering),
        mix_match=parse_mix_match(mix_match),
        adversarial=parse_chances(adversarial_training, "--adversarial_training"),
        refusal=parse_chances(refusal, "--refusal"),
        transforms=parse_transforms(transform),
        refusal_text=text,
        instruction_subset=parse_subset(instruction_subset),
        feature_style=feature_style,
        seed=seed,
    )


def deletion_recovery_protocols(
    delete: str,
    irrelevant: str,
    **common: Any,
) -> dict[str, Protocol]:
    """Return the sets of the deletion and recovery study by the names of its script, and three that it trains on too.

    `delete` is the feature that fine-tuning shall remove, `irrelevant` one that stands for "something else".  The ten
    of the script `tw_fs.sh` come first; then `pretrain-all`, `pretrain-no-<delete>`, and `specialise-<delete>`, as the
    study's configurations call `recovery-<delete>`.  `common` are further arguments of `parse_protocol`, for all sets;
    names of sets with transforms end in the transforms.

    Raises:
        UsageError: for an unknown feature, or the same one twice.

    >>> len(deletion_recovery_protocols("Twist", "Foreshadowing"))
    13
    """
    for flag, feature in (("--feature_delete", delete), ("--feature_irrelevant", irrelevant)):
        if feature not in FEATURES:
            raise UsageError(f"{flag} {feature}: {did_you_mean(feature, FEATURES)}")
    if delete == irrelevant:
        raise UsageError(f"--feature_delete and --feature_irrelevant are both {delete}; give two features")
    without, special = f"features!={delete}", f"features!={delete},features={irrelevant}"
    add, swap = f"features={delete}:1.0", f"features:{irrelevant}={delete}"
    flags: dict[str, dict[str, str]] = {
        f"pretrain-no-{irrelevant}": {"filtering": f"features!={irrelevant}"},
        f"recovery-{delete}": {"filtering": f"features={delete}"},
        f"filter-{delete}": {"filtering": without},
        f"filter-{delete}-specialise-{irrelevant}": {"filtering": special},
        f"filter-adv-{delete}": {"filtering": without, "adversarial_training": add},
        f"filter-adv-{delete}-specialise-{irrelevant}": {"filtering": special, "adversarial_training": add},
        f"filter-mix-{delete}-{irrelevant}": {"filtering": without, "mix_match": swap},
        f"filter-mix-specialise-{delete}-{irrelevant}": {"filtering": special, "mix_match": swap},
        f"filter-ref-{delete}": {"filtering": without, "refusal": add},
        f"filter-ref-{delete}-specialise-{irrelevant}": {"filtering": special, "refusal": add},
        "pretrain-all": {},
        f"pretrain-no-{delete}": {"filtering": without},
        f"specialise-{delete}": {"filtering": f"features={delete}"},
    }
    suffix = "-" + _file_name(",".join(common["transform"])) if common.get("transform") else ""
    return {f"{name}{suffix}": parse_protocol(**given, **common) for name, given in flags.items()}


def _parts(text: str | None, pattern: str, flag: str, usage: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield each part of an expression between commas, with its match."""
    for part in text.split(",") if text else []:
        match = re.fullmatch(rf"\s*{pattern}\s*", part)
        if match is None:
            raise UsageError(f"{flag} {part!r} {usage}")
        yield part, match


def _key(name: str, keys: Iterable[Key], flag: str) -> Key:
    for key in keys:
        if key == name:
            return key
    raise UsageError(f"{flag}: {name} is no key; {did_you_mean(name, keys)}")


def _value(key: Key, value: str) -> str:
    """Check a feature's name; words are checked against the corpus, which knows them."""
    if key != "features":
        return value
    if value not in FEATURES:
        raise UsageError(f"features={value}: {did_you_mean(value, FEATURES)}")
    return value
