"""Records: one name for one story, checked fields, splits that follow from the name alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.stories.features import FEATURES, canonical_feature
from lm_trials.stories.records import (
    RECORD_SCHEMA,
    SPLITS,
    make_record,
    record_from_row,
    record_id,
    split_of,
)

WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1), min_size=1)


@given(WORDS, st.lists(st.sampled_from([" ", "\n", "\n\n", "\r\n", "\t", "  "]), min_size=1))
def test_blanks_do_not_change_the_name_and_words_do(words, blanks):
    spaced = "".join(word + blanks[n % len(blanks)] for n, word in enumerate(words))
    assert record_id(spaced) == record_id("\n " + " ".join(words))
    assert record_id(spaced + "x") != record_id(spaced)


def test_a_name_never_changes():
    assert record_id("One day.") == "d26b4b2053bce65cad5be39a955f3710"


def test_a_record_has_every_field_of_the_schema_and_no_more():
    record = make_record("One day.")
    assert list(record) == list(RECORD_SCHEMA)
    assert record | {"record_id": "", "story": ""} == {**dict.fromkeys(record, ""), "words": [], "features": []}


@pytest.mark.parametrize("spelling", [str.lower, str.upper, lambda name: f" {name} "])
def test_features_are_known_in_any_case(spelling):
    assert [canonical_feature(spelling(feature)) for feature in FEATURES] == list(FEATURES)


def test_an_unknown_feature_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown feature 'Twst'; did you mean Twist\? valid: BadEnding, Conflict"):
        make_record("One day.", features=["Twst"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a story", "'a story' is not an object with a story"),
        (["a story"], "is not an object with a story"),
        (None, "None is not an object"),
        ({"body": "x", "n": 1}, "no column 'story' or 'text'; the columns are body, n; name .* with --text_column"),
        ({"story": None}, "column 'story' is NoneType None; it must be text"),
        ({"story": 3}, "column 'story' is int 3"),
        ({"story": "x", "features": ["Romance"]}, "unknown feature 'Romance'"),
        ({"story": "half a face \ud83d"}, r"'\\ud83d' is half of a surrogate pair"),
        ({"story": "x", "summary": "\udc00"}, "half of a surrogate pair"),
        ({"story": "x", "features": "Dialogue, Romance"}, "unknown feature 'Romance'.*; .* rename the column"),
        ({"story": "O\0n\0e\0"}, r"the text has the control character '\\x00'"),
        ({"story": "x", "words": ["a\0"]}, r"the control character '\\x00'"),
    ],
)
def test_a_row_of_another_kind_says_what_would_be_right(row, message):
    with pytest.raises(UsageError, match=message) as error:
        record_from_row(row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("words", value) for value in (512, 5.0, "512", "3, 4", ["a", 5], [1, 2], {"a": 1}, True, [["a"]])),
        *(("features", value) for value in ("3 rooms, garage", "red", 7, {"a": 1}, [0.1, 0.2])),
        *((name, value) for name in ("prompt", "summary", "source") for value in (1.5, ["w"], [{"role": "user"}])),
    ],
)
def test_a_column_that_means_something_else_is_left_out_and_told(column, value):
    told = []
    plain = make_record("One.")
    assert record_from_row({"text": "One.", column: value}, "text", told.append) == plain
    assert record_from_row({"text": "One.", "instruction": {column: value}}, "text", told.append)["words"] == []
    assert all(line.startswith(f"column {column!r} has {type(value).__name__} that is not ") for line in told)
    assert told
    told.clear()
    ours = {"words": "quit, oak", "features": "Twist", "prompt": "Write.", "summary": "S", "source": "GPT-4"}
    assert record_from_row({"text": "One.", column: ours[column]}, "text", told.append) != plain
    assert record_from_row({"text": "One.", column: None}, "text", told.append) == plain
    assert told == []


@given(st.characters(categories=["Cc"], exclude_characters="\0"))
def test_a_control_character_that_is_no_white_space_is_told(character):
    told = []
    assert record_from_row({"text": f"a{character}b"}, tell=told.append)["story"] == f"a{character}b"
    assert told == (
        [] if character in "\t\n\v\f\r" else [f"stories have the control character {character!r}; it is kept"]
    )


def test_the_named_column_wins_over_the_usual_ones():
    row = {"story": "One.", "text": "Two.", "body": "Three."}
    assert [record_from_row(row, column)["story"] for column in (None, "text", "body")] == ["One.", "Two.", "Three."]
    with pytest.raises(UsageError, match="no column 'tale'; the columns are story, text, body"):
        record_from_row(row, "tale")


@pytest.mark.parametrize("key", ["prompt:", "prompt"])
def test_fields_of_the_archive_and_of_flat_rows_are_the_same(key):
    details = {key: "Write.", "words": ["go", "cat", "red"], "features": ["Badending"]}
    nested = record_from_row({"story": "One.", "instruction": details, "summary": "S", "source": "GPT-4"})
    flat = record_from_row({"story": "One.", **details, "summary": "S", "source": "GPT-4"})
    assert nested == flat == make_record("One.", "Write.", ["go", "cat", "red"], ["BadEnding"], "S", "GPT-4")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("quit, oak", ["quit", "oak"]),
        (" don't ,'tis", ["don't", "'tis"]),
        ("['quit', 'oak']", ["quit", "oak"]),
        (json.dumps(["quit", "oak"]), ["quit", "oak"]),
        ("[]", []),
        ("", []),
    ],
)
def test_lists_written_as_text_are_read(written, words):
    assert record_from_row({"story": "x", "words": written})["words"] == words


def test_splits_are_98_1_and_1_per_cent():
    found = [split_of(record_id(f"Story {n}.")) for n in range(20_000)]
    shares = {split: found.count(split) / len(found) for split in SPLITS}
    # Four standard errors of 1 per cent in 20,000 are 0.28 per cent.
    assert shares["validation"] == pytest.approx(0.01, abs=0.003)
    assert shares["test"] == pytest.approx(0.01, abs=0.003)
    assert sum(shares.values()) == 1


def test_the_borders_of_the_splits_leave_no_gap():
    edges = [0, int(0.98 * 2**32) - 1, int(0.98 * 2**32), int(0.99 * 2**32) - 1, int(0.99 * 2**32), 2**32 - 1]
    assert [split_of(f"{edge:08x}") for edge in edges] == 2 * ["train"] + 2 * ["validation"] + 2 * ["test"]
