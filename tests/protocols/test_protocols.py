"""Protocols: how flags are read, and what a wrong one says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.protocols.protocols import (
    Protocol,
    deletion_recovery_protocols,
    parse_chances,
    parse_filtering,
    parse_mix_match,
    parse_protocol,
    parse_subset,
    protocol_from_dict,
)
from lm_trials.stories.features import FEATURES


def test_conditions_are_read_as_the_seed_writes_them():
    conditions = parse_filtering("features=Twist,words!=dog, length=200")
    assert [str(condition) for condition in conditions] == ["features=Twist", "words!=dog", "length=200"]
    assert parse_filtering(None) == parse_filtering("") == ()


@pytest.mark.parametrize("text", ["features:Conflict=Twist", "features=Conflict:Twist"])
def test_both_spellings_of_a_replacement_are_the_same(text):
    (pair,) = parse_mix_match(text)
    assert (pair.key, pair.old, pair.new) == ("features", "Conflict", "Twist")


def test_every_pair_counts():
    """The published parser loses the last pair: with one pair, the only use there is, nothing was replaced."""
    assert len(parse_mix_match("features:Conflict=Twist,features:Twist=Dialogue,words:dog=cat")) == 3


@pytest.mark.parametrize(
    ("flag", "parse", "text", "message"),
    [
        ("--filtering", parse_filtering, "feature=Twist", "--filtering: feature is not a key; did you mean features?"),
        ("--filtering", parse_filtering, "features=Twst", "did you mean Twist?"),
        ("--filtering", parse_filtering, "features=twist", "did you mean Twist?"),
        ("--filtering", parse_filtering, "features", "is not a condition; write key=value or key!=value"),
        ("--filtering", parse_filtering, "features=Twist,", "is not a condition"),
        ("--filtering", parse_filtering, "length=long", "a length is a number of characters"),
        ("--filtering", parse_filtering, "length=-5", "a length is a number of characters"),
        ("--mix_match", parse_mix_match, "features:Twist", "is not a replacement; write key:old=new"),
        ("--mix_match", parse_mix_match, "length:200=300", "length is not a key"),
        ("--mix_match", parse_mix_match, "features:Conflict=Twiist", "did you mean Twist?"),
        ("--refusal", lambda text: parse_chances(text, "--refusal"), "features=Twist:1.5", "1.5 is not a probability"),
        ("--refusal", lambda text: parse_chances(text, "--refusal"), "features=Twist:-0.1", "is not a probability"),
        ("--refusal", lambda text: parse_chances(text, "--refusal"), "features=Twist:nan", "nan is not a probability"),
        ("--refusal", lambda text: parse_chances(text, "--refusal"), "features=Twist:half", "half is not a prob"),
        ("--refusal", lambda text: parse_chances(text, "--refusal"), "features=Twist", "write key=value:probability"),
        (
            "--refusal", lambda text: parse_chances(text, "--refusal"), "features=Twist:1,features=Twist:0.5",
            "has features=Twist twice",
        ),
        ("--instruction_subset", parse_subset, "Words,Feature", "did you mean Features?"),
    ],
)  # fmt: skip
def test_a_broken_expression_is_one_line(flag, parse, text, message):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["No.", "{feature", "{0}", "{feature} {other}"])
def test_a_refusal_text_must_name_the_feature(text):
    with pytest.raises(UsageError, match="--refusal_text"):
        parse_protocol(refusal_text=text)


FEATURE = st.sampled_from(FEATURES)
CHANCES = st.dictionaries(FEATURE, st.floats(0, 1), max_size=3).map(
    lambda found: ",".join(f"features={feature}:{chance!r}" for feature, chance in found.items())
)
FILTERS = st.lists(st.tuples(FEATURE, st.sampled_from(["=", "!="])), max_size=3).map(
    lambda found: ",".join(f"features{sign}{feature}" for feature, sign in found)
)
SWAPS = st.lists(st.tuples(FEATURE, FEATURE), max_size=3).map(
    lambda found: ",".join(f"features:{old}={new}" for old, new in found)
)
PROTOCOLS = st.builds(
    parse_protocol,
    filtering=FILTERS,
    mix_match=SWAPS,
    adversarial_training=CHANCES,
    refusal=CHANCES,
    instruction_subset=st.sampled_from([None, "Words", "Features,Sentence", "Summary,Words,Features,Sentence"]),
    feature_style=st.sampled_from(["canonical", "capitalized"]),
    seed=st.integers(0, 5),
)


@given(PROTOCOLS)
def test_a_protocol_comes_back_from_its_manifest(protocol):
    assert protocol_from_dict(protocol.as_dict()) == protocol


@given(PROTOCOLS)
def test_a_protocols_name_is_a_plain_file_name(protocol):
    assert not set(protocol.name()) & set("/=:,! ")
    assert Protocol().name() == "F_none_MM_none_AT_none_RF_none_IS_none"


def test_the_ten_sets_of_the_script_have_its_names():
    names = list(deletion_recovery_protocols("Twist", "Foreshadowing"))
    assert names[:10] == [
        "pretrain-no-Foreshadowing",
        "recovery-Twist",
        "filter-Twist",
        "filter-Twist-specialise-Foreshadowing",
        "filter-adv-Twist",
        "filter-adv-Twist-specialise-Foreshadowing",
        "filter-mix-Twist-Foreshadowing",
        "filter-mix-specialise-Twist-Foreshadowing",
        "filter-ref-Twist",
        "filter-ref-Twist-specialise-Foreshadowing",
    ]
    assert names[10:] == ["pretrain-all", "pretrain-no-Twist", "specialise-Twist"]
    other = deletion_recovery_protocols("Dialogue", "Conflict", seed=3)
    assert str(other["filter-mix-Dialogue-Conflict"].mix_match[0]) == "features:Conflict=Dialogue"
    assert {protocol.seed for protocol in other.values()} == {3}


@pytest.mark.parametrize(
    ("delete", "irrelevant", "message"),
    [
        ("Twst", "Conflict", "--feature_delete Twst is not a feature; did you mean Twist?"),
        ("Twist", "Humor", "--feature_irrelevant Humor is not a feature; valid:"),
        ("Twist", "Twist", "are both Twist; give two features"),
    ],
)
def test_a_wrong_pair_of_features_is_one_line(delete, irrelevant, message):
    with pytest.raises(UsageError) as error:
        deletion_recovery_protocols(delete, irrelevant)
    assert message in str(error.value)
