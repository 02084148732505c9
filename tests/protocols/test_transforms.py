"""Named transforms: what each does to a record, what depends on what, and what a wrong one is told."""

import collections
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_structure import imports

from lm_trials.console import UsageError
from lm_trials.protocols import transforms
from lm_trials.protocols.instructions import apply_protocol
from lm_trials.protocols.protocols import parse_protocol, protocol_from_dict
from lm_trials.protocols.transforms import TRANSFORMS, Transform, parse_transforms, transforms_help, usage_of
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.generated.pairing import ACTIVITIES
from lm_trials.stories.records import RECORD_SCHEMA, make_record, record_from_row

RECORDS = [record_from_row(story) for story in generate_stories(200, seed=9)]
STORY = "One day, Tim ran. He fell!\n\nTim cried. The end."
EXAMPLES = {
    "truncate_story": "truncate_story:2",
    "drop_labels": "drop_labels:0.4",
    "swap_labels": "swap_labels:0.4",
    "pair_activities": "pair_activities:0.9",
}
EVERY = [EXAMPLES.get(name, name) for name in TRANSFORMS]


def applied(*steps, records=RECORDS, **flags):
    batch = {key: [record[key] for record in records] for key in RECORD_SCHEMA}
    return apply_protocol(batch, parse_protocol(transform=steps, **flags))


def story_of(step, seed=0):
    return applied(step, records=[make_record(STORY)], seed=seed)["story"][0]


def sentences(text):
    return re.findall(r"[A-Z][^.!]*[.!]", text)


def test_sentences_are_shuffled_and_the_blanks_between_them_stay():
    stories = {story_of("shuffle_sentences", seed) for seed in range(60)}
    assert 12 < len(stories) <= 24
    for story in stories:
        assert sorted(sentences(story)) == sorted(sentences(STORY))
        assert re.findall(r"(?<=[.!])\s+", story) == [" ", "\n\n", " "]


def test_words_are_shuffled_within_their_sentence():
    stories = {story_of("shuffle_words", seed) for seed in range(60)}
    assert len(stories) > 40
    for story in stories:
        first, second = story.split("\n\n")
        words = first.split() + second.split()
        for start, end, sentence in ((0, 4, "One day, Tim ran."), (4, 6, "He fell!"), (6, 8, "Tim cried.")):
            assert sorted(words[start:end]) == sorted(sentence.split())


@pytest.mark.parametrize("count", range(1, 7))
def test_a_truncated_story_is_its_first_sentences(count):
    story = story_of(f"truncate_story:{count}")
    assert STORY.startswith(story)
    assert len(sentences(story)) == min(count, 4)


def test_labels_are_dropped_with_the_probability_and_more_at_a_higher_one():
    batch = {record["record_id"]: record["features"] for record in RECORDS}
    kept = [applied(f"drop_labels:{p}") for p in ("0.0", "0.3", "0.7", "1.0")]
    assert kept[0]["features"] == list(batch.values())
    assert not any(kept[3]["features"])
    for more, fewer in itertools.pairwise(kept):
        assert all(set(few) <= set(many) for many, few in zip(more["features"], fewer["features"], strict=True))
    total = sum(map(len, batch.values()))
    assert sum(map(len, kept[1]["features"])) == pytest.approx(0.7 * total, abs=4 * (0.21 * total) ** 0.5)
    assert kept[2]["story"] == [record["story"] for record in RECORDS]


def test_labels_are_swapped_for_others_with_the_probability_and_more_at_a_higher_one():
    before = [record["features"] for record in RECORDS]
    swapped = [applied(f"swap_labels:{p}")["features"] for p in ("0.0", "0.3", "0.7", "1.0")]
    assert swapped[0] == before
    with_others = [len(old) <= 3 for old in before]
    kept = [bool(set(old) & set(new)) for old, new in zip(before, swapped[3], strict=True)]
    assert not any(itertools.compress(kept, with_others))
    assert sum(with_others) > 150
    for fewer, more in itertools.pairwise(swapped):
        for old, few, many, every in zip(before, fewer, more, swapped[3], strict=True):
            assert len(set(many)) == len(many) == len(old)
            # Each label is the record's own or the one that it is swapped for, and a swapped one stays swapped.
            assert all(m == e if f != o else m in (o, e) for o, f, m, e in zip(old, few, many, every, strict=True))
    pairs = [pair for pair, all_swapped in zip(zip(before, swapped[1], strict=True), with_others, strict=True)
             if all_swapped]  # fmt: skip
    total = sum(len(old) for old, _ in pairs)
    changed = sum(o != n for old, new in pairs for o, n in zip(old, new, strict=True))
    assert changed == pytest.approx(0.3 * total, abs=4 * (0.21 * total) ** 0.5)
    counts = collections.Counter(label for labels in swapped[3] for label in labels)
    assert set(counts) == set(FEATURES)


def test_a_record_with_most_features_keeps_those_for_which_no_other_is_left():
    record = make_record(STORY, features=FEATURES[:5])
    (labels,) = applied("swap_labels:1", records=[record])["features"]
    assert labels == [FEATURES[5], *FEATURES[1:5]]


def test_a_larger_share_pairs_the_same_stories_and_more_and_leaves_the_words_as_they_are():
    shares = (0.0, 0.5, 0.95, 1.0)
    stories = [applied(f"pair_activities:{p}")["story"] for p in shares]
    shown = [[ACTIVITIES.shown(story) for story in each] for each in stories]
    there = [place for place, fits in enumerate(shown[0]) if fits is not None]
    assert len(there) == pytest.approx(0.44 * len(RECORDS), abs=4 * (0.25 * len(RECORDS)) ** 0.5)
    for p, few, many in zip(shares[1:], shown, shown[1:], strict=False):
        assert [place for place, fits in enumerate(many) if fits is not None] == there
        assert all(many[place] for place in there if few[place])
        counted = sum(many[place] for place in there)
        assert counted == pytest.approx(p * len(there), abs=4 * (p * (1 - p) * len(there)) ** 0.5)
    assert not any(shown[0])
    activities = "|".join(activity for pair in ACTIVITIES.pairs for activity in pair)
    others = [[re.sub(activities, "", story) for story in each] for each in ([r["story"] for r in RECORDS], *stories)]
    assert all(each == others[0] for each in others)


@settings(deadline=None, max_examples=25)
@given(
    st.permutations(EVERY), st.integers(1, len(EVERY)), st.integers(0, 3), st.integers(1, 30),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_record_becomes_the_same_alone_shuffled_and_in_any_batch(steps, count, seed, size, shuffler):
    flags = {"refusal": "features=Twist:0.3", "filtering": "length=300", "seed": seed}
    whole = applied(*steps[:count], **flags)
    expected = dict(zip(whole["record_id"], whole["text"], strict=True))
    records = list(RECORDS)
    shuffler.shuffle(records)
    found = {}
    for start in range(0, len(records), size):
        part = applied(*steps[:count], records=records[start : start + size], **flags)
        found |= dict(zip(part["record_id"], part["text"], strict=True))
    assert found == expected


def test_steps_act_in_the_order_given_on_what_the_step_before_left():
    cut, both = applied("truncate_story:2"), applied("truncate_story:2", "shuffle_sentences")
    other = applied("shuffle_sentences", "truncate_story:2")
    assert [sorted(sentences(text)) for text in both["story"]] == [sorted(sentences(text)) for text in cut["story"]]
    assert both["story"] != cut["story"]
    assert other["story"] != both["story"]


def test_another_seed_draws_another_order_and_the_same_one_the_same():
    first, again, other = (applied("shuffle_sentences", seed=seed)["story"] for seed in (0, 0, 1))
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 150


def test_a_name_used_twice_draws_twice(monkeypatch):
    seen = []
    note_draw = Transform(lambda record, draw, _: (seen.append(draw), record)[1], "labels", "X")
    monkeypatch.setitem(TRANSFORMS, "note_draw", note_draw)
    applied("note_draw:a", "note_draw:b", records=RECORDS[:2])
    assert len(set(seen)) == 4
    first = seen[:2]
    applied("note_draw:c", records=RECORDS[:2])
    assert seen[4:] == first  # the argument does not change the draw


def test_the_sentence_line_is_of_the_changed_story_and_a_refusal_is_left_as_it_is():
    texts = applied("truncate_story:1", refusal="features=Twist:0.5", refusal_text="No {feature} here. Never. Ever.")
    refused = 0
    for record, text, story, is_refused in zip(RECORDS, texts["text"], texts["story"], texts["refused"], strict=True):
        assert record["story"].startswith(story) is not is_refused
        refused += is_refused
        if is_refused:
            assert story == "No Twist here. Never. Ever."
        shown = re.search(r"^Sentence: (.*)$", text, re.MULTILINE)
        assert shown is None or record["story"].startswith(shown[1])
    assert 50 < refused < 150


def test_labels_are_changed_after_the_four_other_steps():
    added = applied(adversarial_training="features=Twist:1")["features"]
    dropped = applied("drop_labels:1.0", adversarial_training="features=Twist:1")["features"]
    assert all("Twist" in features for features in added)
    assert not any(dropped)


def test_a_function_may_change_its_record_in_place_or_all_fields_of_it(monkeypatch):
    def rename(record, draw):
        record["story"] = f" {record['story'].replace('Tim', 'Ann')}\n"
        record["words"].append("ann")
        record["summary"] = "Ann."
        return record

    monkeypatch.setitem(TRANSFORMS, "rename", Transform(rename, "story"))
    record = make_record("One day, Tim ran.", words=["run"], summary="Tim.")
    texts = applied("rename", records=[record])
    assert texts["story"] == ["One day, Ann ran."]  # without blanks at its ends, as every record's
    assert {"Words: run, ann", "Summary: Ann.", "Sentence: One day, Ann ran"} <= set(texts["text"][0].splitlines())
    assert (record["words"], record["story"]) == (["run"], "One day, Tim ran.")


@pytest.mark.parametrize(
    ("changes", "field", "refused"),
    [("labels", "story", True), ("labels", "summary", True), ("labels", "features", False), ("labels", "words", False),
     ("story", "record_id", True), ("story", "story", False), ("story", "summary", False)],
)  # fmt: skip
def test_a_transform_changes_only_what_its_kind_may(monkeypatch, changes, field, refused):
    new = ["Twist"] if field in ("features", "words") else "x"
    monkeypatch.setitem(TRANSFORMS, "put", Transform(lambda record, draw: {**record, field: new}, changes))
    records = [make_record("One day.", words=["day"], summary="Day.")]
    if refused:
        with pytest.raises(UsageError, match=f"--transform put changes the field {field} of a record.*'{changes}'"):
            applied("put", records=records)
    else:
        assert applied("put", records=records)["text"] != applied(records=records)["text"]


# --- flags, names and manifests


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["shufle_words"], "shufle_words is not a transform; did you mean shuffle_words?"),
        (["shuffle_words:3"], "--transform shuffle_words:3: shuffle_words takes no argument; give shuffle_words"),
        (["truncate_story"], "truncate_story takes an argument; give truncate_story:N"),
        (["truncate_story:"], "truncate_story takes an argument; give truncate_story:N"),
        (["truncate_story:0"], "'0' is not a whole number of at least 1; give truncate_story:N"),
        (["truncate_story:-1"], "'-1' is not a whole number"),
        (["truncate_story:²"], "'²' is not a whole number"),
        (["drop_labels:1.5"], "'1.5' is not a number from 0 to 1; give drop_labels:P"),
        (["drop_labels:nan"], "'nan' is not a number from 0 to 1"),
        (["drop_labels:half"], "'half' is not a number from 0 to 1"),
        (["shuffle_words", "drop_labels:0.1", "shuffle_words"], "--transform shuffle_words is given twice"),
    ],
)
def test_a_wrong_step_is_one_line(texts, message):
    with pytest.raises(UsageError) as error:
        parse_transforms(texts)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert parse_transforms(EVERY) == parse_transforms(list(EVERY))


@given(st.lists(st.sampled_from([*EVERY, "truncate_story:5"]), unique=True))
def test_a_protocol_comes_back_from_its_manifest(steps):
    protocol = parse_protocol(transform=steps, filtering="features!=Twist", seed=2)
    assert protocol_from_dict(protocol.as_dict()) == protocol
    assert [str(step) for step in protocol.transforms] == steps
    assert protocol_from_dict(parse_protocol().as_dict()) != protocol


def test_a_protocol_without_transforms_is_described_and_named_as_ever():
    described = parse_protocol().as_dict()
    assert list(described) == [
        "filtering", "mix_match", "adversarial", "refusal", "refusal_text", "instruction_subset", "feature_style",
        "seed", "version",
    ]  # fmt: skip
    changed = parse_protocol(transform=["truncate_story:5", "shuffle_words"])
    assert changed.as_dict() == described | {
        "transforms": ["truncate_story:5", "shuffle_words"], "transform_versions": [1, 1],
    }  # fmt: skip
    assert changed.name() == f"{parse_protocol().name()}_TR_truncate_story_5_shuffle_words"


def test_a_name_that_no_file_system_takes_is_cut_and_still_tells_protocols_apart():
    long = ",".join(f"words={letter * 30}" for letter in "abc")
    flags = {"filtering": long, "adversarial_training": long.replace(",", ":1,") + ":1", "refusal": "words=é:1"}
    flags["mix_match"] = ",".join(f"words:{letter * 30}={letter}" for letter in "abc")
    names = {parse_protocol(**flags, transform=[f"truncate_story:{n}", *EVERY[:2]]).name() for n in (1, 2)}
    assert len(names) == 2
    assert max(len(name.encode()) for name in names) <= 255


def test_kinds_are_those_declared():
    assert {name: entry.changes for name, entry in TRANSFORMS.items()} == {
        "shuffle_sentences": "story", "shuffle_words": "story", "truncate_story": "story", "drop_labels": "labels",
        "swap_labels": "labels", "pair_activities": "story",
    }  # fmt: skip
    assert parse_protocol(transform=["drop_labels:0.5", "shuffle_words"]).changes_story
    assert not parse_protocol(transform=["drop_labels:0.5"]).changes_story


def test_the_help_names_every_transform_with_its_docstring():
    for name, entry in TRANSFORMS.items():
        assert f"{usage_of(name)}: {entry.function.__doc__.splitlines()[0]}" in transforms_help()


def test_the_help_is_made_without_heavy_imports():
    package = Path(transforms.__file__).parents[2]
    modules, found = ["lm_trials.data.prepare_flags"], set()
    while modules:
        file = package.joinpath(*modules.pop().split(".")).with_suffix(".py")
        if file.is_file():
            new = {name for name, at_import in imports(file.read_text()) if at_import} - found
            found |= new
            modules += new
    assert {"lm_trials.protocols.transforms", "lm_trials.stories.variety"} <= found
    assert not {"datasets", "pandas", "torch", "transformers"} & {name.split(".")[0] for name in found}
