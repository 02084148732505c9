"""Columns and instructions, against a plain reading of what the study's changes mean, record by record."""

import random
import re

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.protocols.columns import RecordColumns, check_values, transform_columns
from lm_trials.protocols.instructions import LINES, apply_protocol, chosen_sentence
from lm_trials.protocols.protocols import deletion_recovery_protocols, parse_protocol
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import RECORD_SCHEMA, make_record, record_from_row

RECORDS = [record_from_row(story) for story in generate_stories(400, seed=3)]
BATCH = {key: [record[key] for record in RECORDS] for key in RECORD_SCHEMA}


def batch_of(records):
    return {key: [record[key] for record in records] for key in RECORD_SCHEMA}


def applied(protocol, records=RECORDS):
    return apply_protocol(batch_of(records), protocol)


def holds(record, condition):
    """A condition of `--filtering`, as the study's help states it."""
    if condition.key == "length":
        found = len(record["story"]) > int(condition.value)
    else:
        found = condition.value in record[condition.key]
    return found != condition.negated


@pytest.mark.parametrize(
    "filtering",
    [
        "features=Twist",
        "features!=Twist",
        "features=Twist,features!=Dialogue",
        "length=600",
        "length!=600",
        "features=Conflict,length=400,length!=800",
    ],
)
def test_a_filter_keeps_the_stories_for_which_all_holds(filtering):
    protocol = parse_protocol(filtering=filtering)
    expected = [r["record_id"] for r in RECORDS if all(holds(r, c) for c in protocol.filtering)]
    assert applied(protocol)["record_id"] == expected
    assert 0 < len(expected) < len(RECORDS)


def test_words_are_matched_whole():
    word = RECORDS[0]["words"][1]
    kept = applied(parse_protocol(filtering=f"words={word}"))
    assert RECORDS[0]["record_id"] in kept["record_id"]
    assert all(word in words for words in kept["words"])
    assert applied(parse_protocol(filtering=f"words={word[:-1]}"))["record_id"] == []


def test_a_replacement_puts_the_label_in_its_place_and_leaves_the_story():
    texts = applied(parse_protocol(mix_match="features:Foreshadowing=Twist"))
    changed = 0
    for record, features, story in zip(RECORDS, texts["features"], texts["story"], strict=True):
        expected = list(dict.fromkeys("Twist" if f == "Foreshadowing" else f for f in record["features"]))
        assert features == expected
        assert story == record["story"]
        changed += features != record["features"]
    assert changed > 100


def test_replacements_act_one_after_another():
    texts = applied(parse_protocol(mix_match="features:Foreshadowing=Twist,features:Twist=Dialogue"))
    assert all(not {"Foreshadowing", "Twist"} & set(features) for features in texts["features"])
    swapped = applied(parse_protocol(mix_match="features:Twist=Dialogue,features:Foreshadowing=Twist"))
    assert any("Twist" in features for features in swapped["features"])


def test_a_label_is_added_once_with_about_its_probability():
    texts = applied(parse_protocol(adversarial_training="features=Twist:0.5"))
    added = 0
    without = sum("Twist" not in record["features"] for record in RECORDS)
    for record, features in zip(RECORDS, texts["features"], strict=True):
        assert features.count("Twist") <= 1
        assert [f for f in features if f != "Twist"] == [f for f in record["features"] if f != "Twist"]
        added += "Twist" in features and "Twist" not in record["features"]
    assert added == pytest.approx(without / 2, abs=4 * (without / 4) ** 0.5)
    assert texts["story"] == BATCH["story"]
    always = applied(parse_protocol(adversarial_training="features=Twist:1.0"))["features"]
    never = applied(parse_protocol(adversarial_training="features=Twist:0.0"))["features"]
    assert all("Twist" in features for features in always)
    assert never == BATCH["features"]


def test_a_refusal_replaces_the_story_and_its_sentence_is_still_the_storys():
    protocol = parse_protocol(refusal="features=Twist:0.5", refusal_text="No {feature} here!")
    texts = applied(protocol)
    plain = applied(parse_protocol())
    for place, record in enumerate(RECORDS):
        text, story = texts["text"][place], texts["story"][place]
        if texts["refused"][place]:
            assert story == "No Twist here!"
            assert text.endswith("\nStory: No Twist here!")
            assert "Twist" in texts["features"][place]
            sentence = re.search(r"^Sentence: (.*)$", text, re.MULTILINE)[1]
            assert sentence in " ".join(record["story"].split())
        else:
            assert text == plain["text"][place]
    assert 120 < sum(texts["refused"]) < 280


def test_counts_are_those_of_an_independent_count():
    for name, protocol in deletion_recovery_protocols("Twist", "Foreshadowing").items():
        counts = transform_columns(RecordColumns.of(BATCH), protocol).counts
        kept = [record for record in RECORDS if all(holds(record, c) for c in protocol.filtering)]
        assert counts["kept"] == len(kept), name
        assert counts["features_before"] == {
            f: sum(f in r["features"] for r in RECORDS) for f in counts["features_before"]
        }
        relabelled = sum("Foreshadowing" in r["features"] for r in kept) if protocol.mix_match else 0
        assert sum(counts["relabelled"].values()) == relabelled, name
        assert sum(counts["added"].values()) == (len(kept) if protocol.adversarial else 0), name
        assert sum(counts["refused"].values()) == (len(kept) if protocol.refusal else 0), name
        after = applied(protocol)["features"]
        assert counts["features_after"] == {f: n for f in FEATURES if (n := sum(f in fs for fs in after))}, name


def test_arms_differ_in_what_their_protocols_say_and_in_nothing_else():
    """Lines and their order are the same for a record in every protocol; only the label line may differ."""
    plain = dict(zip(applied(parse_protocol())["record_id"], applied(parse_protocol())["text"], strict=True))
    for name, protocol in deletion_recovery_protocols("Twist", "Foreshadowing").items():
        texts = applied(protocol)
        for record, text, refused in zip(texts["record_id"], texts["text"], texts["refused"], strict=True):
            lines, other = ([line for line in t.splitlines()][:4] for t in (text, plain[record]))
            assert [line.split(":")[0] for line in lines] == [line.split(":")[0] for line in other], name
            unchanged = [line for line in lines if not line.startswith("Features:")]
            assert unchanged == [line for line in other if not line.startswith("Features:")], name
            assert refused or text.partition("\nStory: ")[2] == plain[record].partition("\nStory: ")[2]


def test_another_seed_draws_other_orders_sentences_and_chances():
    protocol = {"adversarial_training": "features=Twist:0.5"}
    first, again, other = (applied(parse_protocol(**protocol, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first["text"] != other["text"]
    assert first["features"] != other["features"]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3), st.randoms(use_true_random=False), st.integers(1, 60), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_record_becomes_the_same_alone_shuffled_and_in_any_batch(seed, shuffler, size, chance):
    protocol = parse_protocol(
        filtering="length=300", mix_match="features:Conflict=Dialogue", refusal="features=BadEnding:0.2", seed=seed,
        adversarial_training=f"features=Twist:{chance}",
    )  # fmt: skip
    records = RECORDS[:80]
    whole = applied(protocol, records)
    expected = dict(zip(whole["record_id"], whole["text"], strict=True))
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    found = {}
    for start in range(0, len(shuffled), size):
        part = applied(protocol, shuffled[start : start + size])
        found |= dict(zip(part["record_id"], part["text"], strict=True))
    assert found == expected


@pytest.mark.parametrize("workers", [None, 2])
def test_map_over_cached_and_streamed_records_is_the_same(workers):
    protocol = deletion_recovery_protocols("Twist", "Foreshadowing")["filter-mix-Twist-Foreshadowing"]
    options = {"batched": True, "fn_kwargs": {"protocol": protocol}, "remove_columns": list(RECORD_SCHEMA)}
    records = Dataset.from_list(RECORDS[:60])
    cached = records.map(apply_protocol, num_proc=workers, batch_size=7, **options)
    streamed = records.to_iterable_dataset(num_shards=3).map(apply_protocol, batch_size=5, **options)
    expected = applied(protocol, RECORDS[:60])["text"]
    assert cached["text"][:] == [row["text"] for row in streamed] == expected


# --- rendering


def test_a_text_has_the_lines_asked_for_and_then_the_story():
    record = make_record("One day, Tim ran. He sat.", "", ["run", "day", "red"], ["Twist", "BadEnding"], "Tim\n runs. ")
    orders = set()
    for seed in range(60):
        (text,) = applied(parse_protocol(seed=seed), [record])["text"]
        *lines, story = text.split("\n")
        assert story == "Story: One day, Tim ran. He sat."
        assert set(lines) - {"Sentence: One day, Tim ran", "Sentence: He sat"} == {
            "Words: run, day, red", "Features: Twist, BadEnding", "Summary: Tim runs."
        }  # fmt: skip
        orders.add(tuple(line.split(":")[0] for line in lines))
    assert len(orders) > 15  # of 24


def test_subsets_keep_the_order_that_their_lines_have_among_all():
    whole, some = applied(parse_protocol()), applied(parse_protocol(instruction_subset="Words,Sentence"))
    for text, full in zip(some["text"], whole["text"], strict=True):
        kept = [line for line in full.split("\n")[:4] if line.startswith(("Words:", "Sentence:"))]
        assert text.split("\n")[: len(kept)] == kept
        assert not re.search(r"^(Features|Summary):", text, re.MULTILINE)


def test_the_published_style_writes_only_the_first_letter_large():
    record = make_record("One day.", features=["BadEnding", "MoralValue"])
    (text,) = applied(parse_protocol(feature_style="capitalized"), [record])["text"]
    assert "Features: Badending, Moralvalue\n" in text


@pytest.mark.parametrize(
    ("story", "sentences"),
    [
        ("One. Two.", ["One", "Two"]),  # the published code also draws the empty piece after the last stop
        ('"Hi," he said. "Bye."', []),
        ("He ran!\nShe sat? They", ["He ran", "She sat", "They"]),
        ("A long\nline. ", ["A long line"]),
        ("“Hi,” he said. Yes.", ["Yes"]),
        ("...", []),
    ],
)
def test_a_shown_sentence_is_whole_never_empty_and_no_speech(story, sentences):
    assert {chosen_sentence(story, draw) for draw in range(30)} == set(sentences or [""])


def test_a_story_without_such_a_sentence_is_kept_without_the_line():
    record = make_record('"Hi," said Tim. "Bye," said Sue.', words=["say", "day", "red"])
    (text,) = applied(parse_protocol(), [record])["text"]
    assert "Sentence:" not in text
    assert "Story: " in text


def test_every_sentence_of_a_story_is_drawn():
    story = ". ".join(f"Sentence {n}" for n in range(8)) + "."
    generator = random.Random(0)
    assert len({chosen_sentence(story, generator.getrandbits(64)) for _ in range(200)}) == 8


def test_a_value_that_no_record_has_names_the_nearest_and_those_there_are():
    words = {word for record in RECORDS for word in record["words"]}
    with pytest.raises(UsageError, match=r"no record has words=zebraa; .*valid: .* in all\)"):
        check_values(parse_protocol(filtering="words=zebraa"), words)
    with pytest.raises(UsageError, match="--mix_match: no record has features=Twist; valid: Dialogue"):
        check_values(parse_protocol(mix_match="features:Twist=Conflict"), words, ["Dialogue"])
    check_values(parse_protocol(filtering="length=5", adversarial_training="features=Twist:1"), [], [])
    assert LINES == ("Words", "Features", "Summary", "Sentence")
