"""Protocols: named, versioned, seeded changes to the records, read from the flags of the deletion and recovery study.

A protocol filters records, relabels them (mix_match), adds false labels (adversarial), replaces stories by refusals,
applies named transforms, and chooses the instruction lines, in this order.  `columns` applies a protocol to records,
`transforms` has the named transforms, `instructions` renders the texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lm_trials.console import UsageError, did_you_mean
from lm_trials.protocols.transforms import TransformStep, parse_transforms
from lm_trials.stories.features import FEATURES

Name = TypeVar("Name", bound=str)
ListKey = Literal["features", "words"]
Key = Literal[ListKey, "length"]
FeatureStyle = Literal["canonical", "capitalized"]
LIST_KEYS: tuple[ListKey, ...] = ("features", "words")
KEYS: tuple[Key, ...] = (*LIST_KEYS, "length")
LINES = ("Words", "Features", "Summary", "Sentence")
VERSION = 1  # raise it when the texts of a protocol change; sets of another version are refused
LONGEST_PART = 60  # characters
LONGEST_NAME = 255  # bytes of a file's name on Linux and macOS
REFUSAL_TEXT = "Sorry, this is a story that we will not tell: we do not write stories with {feature}."


@dataclass(frozen=True)
class Condition:
    """A condition on a record: a value in a list, or a story of more characters than `value`; or its negation."""

    key: Key
    value: str
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.key}{'!=' if self.negated else '='}{self.value}"


@dataclass(frozen=True)
class Replacement:
    """A label that replaces another, so that the record's labels are false."""

    key: ListKey
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}:{self.old}={self.new}"


@dataclass(frozen=True)
class Chance:
    """A value that is added to a record's list with a probability."""

    key: ListKey
    value: str
    probability: float

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.probability!r}"


@dataclass(frozen=True)
class Protocol:
    """A change to the records; its output depends on the protocol and the record alone.

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
        """Return a readable name, as the study's script names its sets."""
        subset = () if self.instruction_subset == LINES else self.instruction_subset
        parts: dict[str, Sequence[Any]] = {
            "F": self.filtering, "MM": self.mix_match, "AT": self.adversarial, "RF": self.refusal, "IS": subset
        }  # fmt: skip
        if self.transforms:
            parts["TR"] = self.transforms
        texts = {short: ",".join(map(str, part)) for short, part in parts.items()}
        name = "_".join(f"{short}_{_file_name(text)}" for short, text in texts.items())
        if len(name.encode()) > LONGEST_NAME:
            name = _shortened(name, "_".join(texts.values()), LONGEST_NAME // 4)  # a letter has at most 4 bytes
        return name

    @property
    def changes_story(self) -> bool:
        """Whether more than labels of a record may change."""
        return any(step.transform.changes == "story" for step in self.transforms)

    def changes(self, key: ListKey) -> bool:
        """Return whether the lists of this key may change."""
        parts: tuple[Replacement | Chance, ...] = (*self.mix_match, *self.adversarial, *self.refusal)
        return bool(self.transforms) or any(part.key == key for part in parts)

    def uses(self, key: ListKey) -> bool:
        """Return whether the protocol reads or changes this key."""
        return self.changes(key) or any(condition.key == key for condition in self.filtering)

    def as_dict(self) -> dict[str, Any]:
        """Return the protocol for a manifest; equal protocols give equal dicts."""
        described = dataclasses.asdict(self)
        for field in ("filtering", "mix_match", "adversarial", "refusal", "transforms"):
            described[field] = [str(part) for part in getattr(self, field)]
        described["instruction_subset"] = list(self.instruction_subset)
        if self.transforms:
            described["transform_versions"] = [step.transform.version for step in self.transforms]
        else:
            del described["transforms"]  # manifests written before there were transforms lack the key
        return described


def _file_name(text: str) -> str:
    """Return an expression as part of a file's name, with characters that every file system accepts.

    >>> _file_name("words!=a/b,length=5"), len(_file_name("words=" + 99 * "x"))
    ('words_x_a_b_length_5', 60)
    """
    name = re.sub(r"[^\w.-]", "_", text.replace("!=", "_x_")) or "none"
    return name if len(name) <= LONGEST_PART else _shortened(name, text, LONGEST_PART)


def _shortened(name: str, text: str, length: int) -> str:
    """Cut a long name; a hash of the whole text makes it unique."""
    return f"{name[: length - 11]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def parse_filtering(text: str | None) -> tuple[Condition, ...]:
    """Read `features=Twist,words!=dog,length=200`: all conditions must hold.

    `length=200` keeps stories of more than 200 characters, `length!=200` those of at most 200.

    Raises:
        UsageError: for a malformed expression, an unknown key, or a length that is not a whole number.

    >>> [str(condition) for condition in parse_filtering("features!=Twist,length=200")]
    ['features!=Twist', 'length=200']
    """
    conditions = []
    usage = "is not a condition; write key=value or key!=value, for example features!=Twist"
    for part, match in _parts(text, r"(\w+)\s*(!?=)\s*([^=!:]+?)", "--filtering", usage):
        key = _key(match[1], KEYS, "--filtering")
        if key == "length" and not re.fullmatch("[0-9]+", match[3]):
            raise UsageError(f"--filtering {part!r}: a length is a number of characters, for example length=200")
        conditions.append(Condition(key, _value(key, match[3], "--filtering"), match[2] == "!="))
    return tuple(conditions)


def parse_mix_match(text: str | None) -> tuple[Replacement, ...]:
    """Read `features:Foreshadowing=Twist`, or `features=Foreshadowing:Twist` as in the study's script.

    Pairs are applied in order, each to the result of the one before.

    Raises:
        UsageError: for a malformed expression or an unknown key.

    >>> parse_mix_match("features:Foreshadowing=Twist") == parse_mix_match("features=Foreshadowing:Twist")
    True
    """
    pairs = []
    usage = "is not a replacement; write key:old=new, for example features:Conflict=Twist"
    for _, match in _parts(text, r"(\w+)\s*[:=]\s*([^=:!]+?)\s*[:=]\s*([^=:!]+?)", "--mix_match", usage):
        key = _key(match[1], LIST_KEYS, "--mix_match")
        pairs.append(Replacement(key, *(_value(key, text, "--mix_match") for text in match.group(2, 3))))
    return tuple(pairs)


def parse_chances(text: str | None, flag: str) -> tuple[Chance, ...]:
    """Read `features=Twist:0.5,...`, the values of `--adversarial_training` and `--refusal`.

    Raises:
        UsageError: for a malformed expression, an unknown key, a probability outside 0..1, or a value given twice.

    >>> [str(chance) for chance in parse_chances("features=Twist:0.5", "--refusal")]
    ['features=Twist:0.5']
    """
    chances: list[Chance] = []
    usage = "has no probability; write key=value:probability, for example features=Twist:0.5"
    for part, match in _parts(text, r"(\w+)\s*=\s*([^=:!]+?)\s*:\s*([^=:!]+?)", flag, usage):
        key = _key(match[1], LIST_KEYS, flag)
        try:
            probability = float(match[3])
        except ValueError:
            probability = math.nan
        if not 0 <= probability <= 1:
            raise UsageError(f"{flag} {part!r}: {match[3]} is not a probability; give a number from 0 to 1")
        chance = Chance(key, _value(key, match[2], flag), probability)
        if any((other.key, other.value) == (chance.key, chance.value) for other in chances):
            raise UsageError(f"{flag} {text} has {chance.key}={chance.value} twice; give it once")
        chances.append(chance)
    return tuple(chances)


def parse_subset(text: str | None) -> tuple[str, ...]:
    """Read `Words,Features` as the instruction lines to show; default: all four.

    >>> parse_subset("Features,Words")
    ('Words', 'Features')
    """
    if not text:
        return LINES
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in LINES:
            raise UsageError(f"--instruction_subset {name} is not a line; {did_you_mean(name, LINES)}")
    return tuple(line for line in LINES if line in names)


def protocol_from_dict(described: dict[str, Any]) -> Protocol:
    """Read the result of `Protocol.as_dict`.

    >>> protocol = Protocol(mix_match=parse_mix_match("features:Conflict=Twist"), seed=3)
    >>> protocol_from_dict(protocol.as_dict()) == protocol
    True
    """
    protocol = parse_protocol(
        filtering=",".join(described["filtering"]),
        mix_match=",".join(described["mix_match"]),
        adversarial_training=",".join(described["adversarial"]),
        refusal=",".join(described["refusal"]),
        transform=described.get("transforms", ()),
        refusal_text=described["refusal_text"],
        instruction_subset=",".join(described["instruction_subset"]),
        feature_style=described["feature_style"],
        seed=described["seed"],
    )
    return dataclasses.replace(protocol, version=described["version"])


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
    """Read a protocol from the values of flags."""
    text = refusal_text or REFUSAL_TEXT
    try:
        named = text.format(feature="") != text.format(feature="x")
    except (KeyError, IndexError, ValueError):  # another field than {feature}, or a brace that is not closed
        named = False
    if not named or "\n" in text:
        raise UsageError(
            f"--refusal_text {text!r} is not one line with {{feature}}; write {{feature}} in the place of its name"
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


def deletion_recovery_protocols(delete: str, irrelevant: str, **common: Any) -> dict[str, Protocol]:
    """Return the sets of the deletion and recovery study by the names of its script, and three more that it trains on.

    `delete` is the feature that fine-tuning removes, `irrelevant` another feature.  The ten sets of the script
    `tw_fs.sh` come first; then `pretrain-all`, `pretrain-no-<delete>`, and `specialise-<delete>`, the name of
    `recovery-<delete>` in the study's configurations.  `common` are arguments of `parse_protocol` for all sets;
    names of sets with transforms end in the transforms.

    Raises:
        UsageError: for an unknown feature, or the same feature twice.

    >>> len(deletion_recovery_protocols("Twist", "Foreshadowing"))
    13
    """
    for flag, feature in (("--feature_delete", delete), ("--feature_irrelevant", irrelevant)):
        if feature not in FEATURES:
            raise UsageError(f"{flag} {feature} is not a feature; {did_you_mean(feature, FEATURES)}")
    if delete == irrelevant:
        raise UsageError(f"--feature_delete and --feature_irrelevant are both {delete}; give two features")
    without, special = f"features!={delete}", f"features!={delete},features={irrelevant}"
    add, swap = f"features={delete}:1.0", f"features:{irrelevant}={delete}"
    flags: dict[str, dict[str, Any]] = {
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


def _key(name: str, keys: Sequence[Name], flag: str) -> Name:
    for key in keys:
        if key == name:
            return key
    raise UsageError(f"{flag}: {name} is not a key; {did_you_mean(name, keys)}")


def _value(key: Key, value: str, flag: str) -> str:
    """Check the name of a feature; words are checked later, against those of the corpus."""
    if key == "features" and value not in FEATURES:
        raise UsageError(f"{flag}: {value} is not a feature; {did_you_mean(value, FEATURES)}")
    return value
