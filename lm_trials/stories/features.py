"""The narrative features of TinyStories and their spellings; nothing heavy is imported."""

from __future__ import annotations

from lm_trials.console import UsageError, did_you_mean

FEATURES = ("Dialogue", "Twist", "BadEnding", "MoralValue", "Foreshadowing", "Conflict")
"""The narrative features of TinyStories, in the order in which this project lists them."""

_SPELLINGS = {feature.lower(): feature for feature in FEATURES}


def canonical_feature(name: str) -> str:
    """Return the project's spelling of a feature; the published models were trained on `Badending`.

    >>> canonical_feature("moralvalue")
    'MoralValue'
    """
    try:
        return _SPELLINGS[name.strip().lower()]
    except KeyError:
        raise UsageError(f"unknown feature {name!r}; {did_you_mean(name, FEATURES)}") from None
