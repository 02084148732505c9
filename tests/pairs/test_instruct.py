"""Instruct sets: the published wordings come out right, every record is counted, and a cut story has no end."""

import json
import re
import statistics
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_line

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.pairs.instruct import (
    COLUMNS,
    MAX_LENGTH,
    Recipe,
    Tally,
    instruct_rows,
    make_instruct_set,
    story_cutter,
)
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE, chat_example, instruct_examples
from lm_trials.pairs.pairs import open_pairs
from lm_trials.pairs.prompts import (
    FEATURE_PHRASES,
    SUMMARY_QUESTIONS,
    WORDS_TURNS,
    asked_prompt,
    cleaned_prompt,
)
from lm_trials.stories.corpora import open_records, read_manifest, write_corpus
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.phrases import PROMPTS
from lm_trials.stories.records import SPLITS, make_record
from lm_trials.stories.sources import open_source
from lm_trials.tokens.tokenizers import batch_encoder, load_tokenizer, tokenizer_hash

LONG_SENTENCE = "Write a short story (3-5 paragraphs) which only uses very simple words that a 3 year old child would "
GPT_35 = LONG_SENTENCE + (
    'understand. In the story, try to at some point use the verb "hang", the noun "lab" and the adjective "fierce". '
    "Remember to only use simple words!"
)
GPT_4 = LONG_SENTENCE + (
    'understand. The story should use the verb "stay", the noun "blue" and the adjective "powerful". The story has the '
    "following features: the story should contain at least one dialogue, the story has a bad ending. Remember to only "
    "use simple words!\n\nPossible story:"
)
CLEANED_GPT_35 = (
    'Write a story. In the story, try to use the verb "hang", the noun "lab" and the adjective "fierce". '
    "Possible story:"
)
CLEANED_GPT_4 = (
    'Write a story. The story should use the verb "stay", the noun "blue" and the adjective "powerful". The story has '
    "the following features: the story should contain at least one dialogue, the story has a bad ending. "
    "Possible story:"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    return load_tokenizer(str(tiny_data / "tok400"))


@pytest.fixture
def data(tiny_data, tmp_path):
    """A data folder of its own with links to the corpus and tokenizer."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("tiny", "tok400"):
        (folder / name).symlink_to(tiny_data / name)
    return folder


def flags(folder, *more):
    return ["instruct", "--corpus", "tiny", "--data_cache_dir", str(folder), *more]


def refused(argv, capsys):
    return error_line(capsys, prepare_tinystories.main, *argv)


def corpus_of(records, folder):
    write_corpus(((0, record) for record in records), folder, {"reference": "test", "fingerprint": "0"})
    return folder


def rows_of(folder):
    """Return the rows of a data set of pairs by their name, with their split."""
    prepared = open_pairs(str(folder), folder.parent)
    return {row["record_id"]: {**row, "split": split} for split in SPLITS for row in prepared.splits[split]}


def story(number):
    return f"One day, Tom number {number} sat on a mat. He was glad."


# --- Prompts.


def test_both_published_wordings_are_cleaned_as_published():
    for given_prompt, wanted in ((GPT_35, CLEANED_GPT_35), (GPT_4, CLEANED_GPT_4)):
        record = make_record("One day.", prompt=given_prompt)
        assert asked_prompt(record, "prompt") == wanted
    as_in_the_paper = GPT_35.replace("would understand", "would likely understand")
    assert asked_prompt(make_record("One day.", prompt=as_in_the_paper), "prompt") == CLEANED_GPT_35


def test_real_records_are_asked_for_as_the_published_story_teller_was(shared_data, tmp_path):
    records = list(open_source(str(shared_data / "tinystories_alldata_fixture" / "data00.json")).records())
    tally = Tally()
    rows = list(instruct_rows(records, Recipe("prompt"), tally))
    assert [row["prompt"] for row in rows[:2]] == [CLEANED_GPT_35, CLEANED_GPT_4]
    for record, row in zip(records, rows, strict=True):
        assert row["prompt"].startswith("Write a story. ")
        assert row["prompt"].endswith(" Possible story:")
        assert row["prompt"].count("Possible story:") == 1
        assert "Remember" not in row["prompt"]
        assert "at some point" not in row["prompt"]
        assert all(f'"{word}"' in row["prompt"] for word in record["words"])
        assert row["completion"] == record["story"].strip()
    assert tally.counts["prompts_cleaned"] == len(records) == 6
    summaries = [row["prompt"] for row in instruct_rows(records, Recipe("summary"), Tally())]
    assert summaries[0].startswith("Write A lion climbs up a lab building")
    assert summaries[3].startswith("Write Lily played hide and seek")


def test_real_records_without_a_prompt_get_one_in_the_same_wording(shared_data):
    records = list(open_source(str(shared_data / "tinystories_alldata_fixture" / "archive_records.jsonl")).records())
    tally = Tally()
    rows = list(instruct_rows(records, Recipe("prompt"), tally))
    assert tally.counts["prompts_written"] == len(rows) == 32
    assert rows[0]["prompt"] == (
        'Write a story. The story should use the verb "dare", the noun "goat" and the adjective "helpless". '
        "Possible story:"
    )
    assert "features: the story should contain at least one dialogue" in rows[1]["prompt"]
    assert list(instruct_rows(records, Recipe("summary"), tally)) == []
    assert tally.counts["no_summary"] == 32


def test_a_written_prompt_is_what_cleaning_a_published_one_gives():
    for source, prompt, words, features in (
        ("GPT-3.5", GPT_35, ["hang", "lab", "fierce"], []),
        ("GPT-4", GPT_4, ["stay", "blue", "powerful"], ["Dialogue", "BadEnding"]),
    ):
        without = make_record("One day.", words=words, features=features, source=source)
        assert asked_prompt(without, "prompt") == asked_prompt({**without, "prompt": prompt}, "prompt")


def test_every_feature_and_any_number_of_words_can_be_asked_for():
    assert set(FEATURE_PHRASES) == set(FEATURES)
    asked = asked_prompt(make_record("One day.", features=FEATURES), "prompt")
    assert all(phrase in asked for phrase in FEATURE_PHRASES.values())
    for words, phrase in (
        (["sit"], 'use the word "sit".'),
        (["sit", "mat"], 'use the words "sit" and "mat".'),
        (["sit", "mat", "red"], 'use the verb "sit", the noun "mat" and the adjective "red".'),
        (["sit", "mat", "red", "dog"], 'use the words "sit", "mat", "red" and "dog".'),
    ):
        assert f"The story should {phrase} Possible story:" in asked_prompt(
            make_record("One day.", words=words), "prompt"
        )


@pytest.mark.parametrize("form", PROMPTS)
def test_generated_prompts_are_shortened_in_the_same_places(form):
    prompt = form.format(v="sit", n="mat", a="red", f=" Make sure that there is a twist.")
    cleaned = cleaned_prompt(prompt)
    assert cleaned.startswith(("Write a story. ", "Tell a story. "))
    assert cleaned.endswith(" Make sure that there is a twist.")
    assert '"sit"' in cleaned
    assert cleaned_prompt(cleaned) == cleaned


def test_another_wording_stays_as_it_is_and_is_counted():
    tally = Tally()
    records = [make_record(story(0), prompt=" Please tell me of a mat!\n"), make_record(story(1), prompt=" \n")]
    (row,) = instruct_rows(records, Recipe("prompt"), tally)
    assert row["prompt"] == "Please tell me of a mat! Possible story:"
    assert (tally.counts["prompts_as_they_are"], tally.counts["no_prompt"]) == (1, 1)


def test_a_summary_is_asked_for_with_its_first_letter_as_it_is():
    rows = instruct_rows(
        [make_record(story(0), summary=" a cat sits.\n"), make_record(story(1), summary="Tom sits.")],
        Recipe("summary"),
        Tally(),
    )
    assert [row["prompt"] for row in rows] == ["Write a cat sits.", "Write Tom sits."]


# --- The data set.


def test_the_command_makes_a_set_that_opens(data, capsys):
    manifest = prepare_tinystories.main(flags(data))
    prepared = open_pairs("tiny-instruct-prompt", data)
    assert prepared.kind == "pairs"
    corpus = open_records(data / "tiny")
    for split in SPLITS:
        assert prepared.splits[split]["record_id"][:] == corpus[split]["record_id"][:]  # own splits, own order
        assert prepared.splits[split]["completion"][:] == [text.strip() for text in corpus[split]["story"]]
        for name in COLUMNS.keys() - {"ended"}:
            assert prepared.splits[split][name][:] == corpus[split][name][:]
        assert all(prepared.splits[split]["ended"])
    assert manifest["source"] == {"corpus": "tiny", "content": read_manifest(data / "tiny")["content"]}
    assert manifest["counts"]["train"] == {"records": 391, "prompts_cleaned": 391, "rows": 391} | {
        key: value for key, value in manifest["counts"]["train"].items() if value == 0
    }
    out = capsys.readouterr().out
    assert "391 train, 6 validation, 3 test" in out
    assert "none of 400 records" in out
    assert "not counted and nothing cut; --vocab_size N" in out
    assert "lm-trials tune --model_name_or_path RUN --dataset_name tiny-instruct-prompt" in out
    assert "two examples" in out
    saved = read_manifest(data / "tiny-instruct-prompt", "counts", "style", "seed", "content")
    assert saved["counts"] == manifest["counts"]
    assert "tokenizer_hash" not in saved
    assert "max_length" not in saved


def test_the_same_command_makes_the_same_content_and_another_style_another(data, tmp_path):
    first = prepare_tinystories.main(flags(data, "--dataset_name", "first"))
    again = prepare_tinystories.main(flags(data, "--dataset_name", "again"))
    other = prepare_tinystories.main(flags(data, "--dataset_name", "other", "--style", "summary"))
    assert again["content"] == first["content"] != other["content"]
    rows = rows_of(data / "other")
    assert all(row["prompt"].startswith("Write ") and '"' not in row["prompt"] for row in rows.values())


def test_what_a_record_has_not_is_counted_and_left_out(tmp_path, capsys):
    records = [
        make_record(story(n), summary="Tom sits." if n % 3 else " ", words=["sit"] if n % 2 else []) for n in range(300)
    ]
    corpus = corpus_of(records, tmp_path / "mixed")
    there = ["--corpus", "mixed", "--data_cache_dir", str(tmp_path)]
    by_summary = prepare_tinystories.main(["instruct", "--style", "summary", *there])
    assert sum(count["no_summary"] for count in by_summary["counts"].values()) == 100
    assert sum(by_summary["rows"].values()) == 200
    assert "100 without a summary" in capsys.readouterr().out
    by_prompt = prepare_tinystories.main(["instruct", *there])
    assert sum(by_prompt["rows"].values()) == 150
    assert "150 without prompt, words or features" in capsys.readouterr().out
    names = {record["record_id"] for n, record in enumerate(records) if n % 2}
    assert rows_of(tmp_path / "mixed-instruct-prompt").keys() == names
    assert corpus.is_dir()


def test_an_empty_story_is_counted_and_left_out():
    tally = Tally()
    record = {**make_record("One day.", summary="It is day."), "story": " \n"}
    assert list(instruct_rows([record, make_record("One day.", summary="It is.")], Recipe("summary"), tally)) != []
    assert (tally.counts["no_story"], tally.counts["records"]) == (1, 2)


def test_a_pair_depends_on_its_record_style_and_seed_alone(data, tmp_path, tiny_data):
    """Half of the stories in another order, after others: the same rows."""
    records = [row for rows in open_records(tiny_data / "tiny").values() for row in rows]
    others = [make_record(story(n), summary="Tom sits.", words=["sit"]) for n in range(1500)]
    corpus_of([*others, *records[::-2]], tmp_path / "half")
    recipe = Recipe("prompt", conversational=True, turns=3, seed=5)
    make_instruct_set(tiny_data / "tiny", tmp_path / "one", recipe)
    make_instruct_set(tmp_path / "half", tmp_path / "two", recipe)
    make_instruct_set(tiny_data / "tiny", tmp_path / "three", Recipe("prompt", conversational=True, turns=3, seed=6))
    one, two, three = (rows_of(tmp_path / name) for name in ("one", "two", "three"))
    shared = one.keys() & two.keys()
    assert len(shared) == 200
    assert all(one[name] == two[name] for name in shared)
    assert one.keys() == three.keys()
    differ = [name for name in one if one[name] != three[name]]
    assert 250 < len(differ) < 400  # 8 of 9 in expectation: three wordings of each of two questions


def test_a_dry_run_counts_and_writes_nothing(data, capsys):
    before = sorted(entry.name for entry in data.iterdir())
    more = ["--vocab_size", "400", "--max_length", "260", "--overlong", "cut"]
    counted = prepare_tinystories.main(flags(data, "--dry_run", *more))
    assert sorted(entry.name for entry in data.iterdir()) == before
    assert "the same command without --dry_run; nothing was written" in capsys.readouterr().out
    made = prepare_tinystories.main(flags(data, *more))
    assert made["counts"] == counted["counts"]
    assert made["rows"] == counted["rows"]


# --- Lengths.


def lengths(tokenizer, rows):
    examples = instruct_examples(
        tokenizer, [row["prompt"] for row in rows], [row["completion"] for row in rows], [row["ended"] for row in rows]
    )
    return [len(example.input_ids) for example in examples]


def test_overlong_examples_are_counted_and_dropped(data, tokenizer, capsys):
    prepare_tinystories.main(flags(data, "--dataset_name", "all"))
    everything = rows_of(data / "all")
    by_hand = dict(zip(everything, lengths(tokenizer, list(everything.values())), strict=True))
    most = int(statistics.median(by_hand.values()))
    manifest = prepare_tinystories.main(flags(data, "--vocab_size", "400", "--max_length", str(most)))
    kept = rows_of(data / "tiny-instruct-prompt")
    assert kept == {name: row for name, row in everything.items() if by_hand[name] <= most}
    assert most in map(by_hand.get, kept)  # the longest that fits is kept
    overlong = sum(length > most for length in by_hand.values())
    assert sum(count["overlong"] for count in manifest["counts"].values()) == overlong == 400 - len(kept)
    assert f"{overlong} over-long" in (out := capsys.readouterr().out)
    assert f"{overlong} of 400 have more than {most} tokens; left out" in out
    assert (manifest["max_length"], manifest["overlong"]) == (most, "drop")
    by_default = prepare_tinystories.main(flags(data, "--vocab_size", "400", "--dataset_name", "published"))
    assert by_default["max_length"] == MAX_LENGTH == 350
    assert sum(by_default["rows"].values()) == sum(length <= 350 for length in by_hand.values())
    assert manifest["tokenizer_hash"] == tokenizer_hash(tokenizer)


@pytest.mark.end_to_end
def test_a_cut_story_fits_and_has_no_end(data, tokenizer, capsys):
    prepare_tinystories.main(flags(data, "--dataset_name", "all"))
    everything = rows_of(data / "all")
    prepare_tinystories.main(flags(data, "--vocab_size", "400", "--max_length", "200", "--overlong", "cut"))
    rows = rows_of(data / "tiny-instruct-prompt")
    assert rows.keys() == everything.keys()
    cut = 0
    for row, length in zip(rows.values(), lengths(tokenizer, list(rows.values())), strict=True):
        whole = everything[row["record_id"]]
        assert length <= 200
        if row["ended"]:
            assert row == whole
            continue
        cut += 1
        assert length >= 198  # a blank at the place of the cut goes too
        assert whole["completion"].startswith(row["completion"])
        (before,) = instruct_examples(tokenizer, [whole["prompt"]], [whole["completion"]])
        (after,) = instruct_examples(tokenizer, [row["prompt"]], [row["completion"]], [False])
        assert after.input_ids == before.input_ids[:length]  # cut between tokens: what is left is what it was
        assert after.input_ids[-1] != tokenizer.eos_token_id == before.input_ids[-1]
    out = capsys.readouterr().out
    assert f"{cut} of 400 have more than 200 tokens; {cut} cut, and no EOS after them" in out
    assert "[cut here]" in out
    assert cut > 300


def test_a_prompt_that_leaves_no_place_is_left_out_when_stories_are_cut(tokenizer):
    recipe = Recipe("summary", tokenizer=tokenizer, max_length=20, overlong="cut")
    records = [make_record(story(0), summary="Tom sits."), make_record(story(1), summary="Tom sits. " * 30)]
    tally = Tally()
    (row,) = instruct_rows(records, recipe, tally)
    assert row["prompt"] == "Write Tom sits."
    assert not row["ended"]
    assert (tally.counts["overlong"], tally.counts["cut"], tally.counts["dropped"]) == (2, 1, 1)


@pytest.mark.parametrize("name", ["gpt2_tokenizer", "llama_tokenizers/llama2_32000"])
def test_real_stories_are_cut_to_fit_with_published_tokenizers(shared_data, name):
    published = load_tokenizer(str(shared_data / name))
    folder = shared_data / "tinystories_alldata_fixture"
    records = [
        r for file in ("data00.json", "archive_records.jsonl") for r in open_source(str(folder / file)).records()
    ]
    tally = Tally()
    rows = list(instruct_rows(records, Recipe("prompt", tokenizer=published, max_length=150, overlong="cut"), tally))
    assert len(rows) == len(records)
    assert max(lengths(published, rows)) == 150
    assert [row["ended"] for row in rows].count(False) == tally.counts["cut"] > 20
    for record, row in zip(records, rows, strict=True):
        assert record["story"].startswith(row["completion"])


FRAGMENTS = ["a", " cat", "\n", "\n\n", "   ", "</s>", "é", "한국", "😀", "👩‍👧", "\u2028", "▁", "ﬁ", "12"]


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join), room=st.integers(0, 40))
def test_a_text_is_cut_at_its_end_and_fits_when_tokenised_again(tokenizer, text, room):
    encode = batch_encoder(tokenizer)
    left = story_cutter(tokenizer)(text, room)
    assert text.startswith(left)
    assert len(encode([left])[0]) <= room
    if len(encode([text])[0]) <= room:
        assert left == text.rstrip()
    else:
        assert left != text


def test_a_text_is_cut_between_its_tokens(tokenizer):
    text = "</s> bounced</s> wonderfully <s>remembered, unbelievable</s>."
    encode, cut = batch_encoder(tokenizer), story_cutter(tokenizer)
    (whole,) = encode([text])
    for room in range(1, len(whole) + 1):
        (left,) = encode([cut(text, room)])
        assert left == whole[: len(left)]
        assert room - 1 <= len(left) <= room  # a blank at the end goes


# --- Conversations.


def test_a_conversation_of_one_turn_is_the_pair(data):
    prepare_tinystories.main(flags(data))
    prepare_tinystories.main(flags(data, "--conversational", "True", "--dataset_name", "chat"))
    assert open_pairs("chat", data).kind == "conversations"
    pairs, chats = rows_of(data / "tiny-instruct-prompt"), rows_of(data / "chat")
    for name, pair in pairs.items():
        assert chats[name]["messages"] == [
            {"role": "user", "content": pair["prompt"]},
            {"role": "assistant", "content": pair["completion"]},
        ]
        assert chats[name]["num_prompt"] == 0
        assert chats[name]["ended"]
        assert chats[name]["words"] == pair["words"]


def test_further_turns_ask_for_what_the_record_knows(data, tiny_data, capsys):
    prepare_tinystories.main(flags(data, "--conversational", "--turns", "3", "--dataset_name", "chat"))
    records = {row["record_id"]: row for rows in open_records(tiny_data / "tiny").values() for row in rows}
    asked = set()
    for name, row in rows_of(data / "chat").items():
        _, _, question, summary, about_words, words = row["messages"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 3
        assert summary["content"] == records[name]["summary"]
        assert all(f'"{word}"' in words["content"] for word in records[name]["words"])
        answer = dict(WORDS_TURNS)[about_words["content"]]
        assert words["content"].startswith(answer.partition("{}")[0])
        asked.add((question["content"], about_words["content"]))
    assert asked == set(product(SUMMARY_QUESTIONS, dict(WORDS_TURNS)))  # one says nothing of the other
    assert "user: " in capsys.readouterr().out
    two = prepare_tinystories.main(flags(data, "--conversational", "--turns", "2", "--dataset_name", "two"))
    assert {len(row["messages"]) for row in rows_of(data / "two").values()} == {4}
    assert two["counts"]["train"]["turns_without_words"] == 0


def test_turns_for_which_the_record_has_nothing_are_left_away_and_counted():
    records = [
        make_record(story(0), prompt="Tell me.", summary="Tom sits.", words=["sit"]),
        make_record(story(1), prompt="Tell me.", words=["sit"]),
        make_record(story(2), prompt="Tell me."),
    ]
    tally = Tally()
    rows = list(instruct_rows(records, Recipe("prompt", conversational=True, turns=3), tally))
    assert [len(row["messages"]) for row in rows] == [6, 4, 2]
    assert (tally.counts["turns_without_summary"], tally.counts["turns_without_words"]) == (2, 1)


@pytest.mark.end_to_end
def test_overlong_conversations_are_counted_by_their_layout_and_left_out(data, tiny_data):
    prepare_tinystories.main(flags(data, "--conversational", "--turns", "3", "--dataset_name", "all"))
    with_template = load_tokenizer(str(tiny_data / "tok400"))
    with_template.chat_template = STORY_CHAT_TEMPLATE
    everything = rows_of(data / "all")
    by_hand = {name: len(chat_example(with_template, row["messages"]).input_ids) for name, row in everything.items()}
    most = int(statistics.median(by_hand.values()))
    more = ["--turns", "3", "--dataset_name", "short", "--vocab_size", "400", "--max_length", str(most)]
    manifest = prepare_tinystories.main(flags(data, "--conversational", *more))
    short = rows_of(data / "short")
    assert short == {name: row for name, row in everything.items() if by_hand[name] <= most}
    assert sum(count["overlong"] for count in manifest["counts"].values()) == 400 - len(short)
    assert len(manifest["chat_template"]) == 16


# --- Bad input.

BAD = [
    (["--style", "promt"], "argument --style: invalid choice: 'promt' (choose from 'prompt', 'summary')"),
    (["--corpus", "nope"], "nope holds no records"),
    (["--corpus", "a/b"], "--corpus 'a/b' is not a plain name"),
    (["--dataset_name", "tok400"], "tok400 already exists"),
    (["--dataset_name", "tiny"], "--dataset_name tiny is the corpus itself; give another name"),
    (["--dataset_name", "../x"], "--dataset_name '../x' is not a plain name"),
    (["--dataset_name", ""], "--dataset_name '' is not a plain name"),
    (["--vocab_size", "400", "--tokenizer_name", "x"], "--vocab_size 400 and --tokenizer_name cannot be combined"),
    (["--vocab_size", "7"], "--vocab_size 7: no tokenizer in"),
    (["--max_length", "300"], "--max_length 300 needs --vocab_size or --tokenizer_name"),
    (["--overlong", "cut"], "--overlong cut needs --vocab_size or --tokenizer_name"),
    (["--vocab_size", "400", "--max_length", "0"], "--max_length 0 must be"),
    (["--vocab_size", "400", "--max_length", "50"], "--max_length 50: nothing of tiny fits; give at least "),
    (["--vocab_size", "400", "--max_length", "9", "--overlong", "cut"], "9: the prompts of tiny leave no room"),
    (["--turns", "2"], "--turns 2 needs --conversational"),
    (["--turns", "4", "--conversational"], "--turns 4 must be"),
    (
        ["--conversational", "--overlong", "cut", "--vocab_size", "400"],
        "--conversational and --overlong cannot",
    ),
    (["--seed", "-1"], "--seed -1 must be"),
]


@pytest.mark.parametrize(("more", "reason"), BAD)
def test_bad_input_gets_one_line_and_writes_nothing(data, capsys, more, reason):
    before = sorted(entry.name for entry in data.iterdir())
    assert reason in refused(flags(data, *more), capsys)
    assert sorted(entry.name for entry in data.iterdir()) == before


@pytest.mark.end_to_end
def test_the_lengths_that_the_refusals_name_are_enough(data, tokenizer, capsys):
    """One token fewer is refused, and what is named is not."""
    for overlong in ("drop", "cut"):
        more = ["--vocab_size", "400", "--overlong", overlong, "--dataset_name", overlong]
        line = refused(flags(data, "--max_length", "9", *more), capsys)
        _, enough = map(int, re.findall(r"\d+", line))
        assert f"--max_length {enough - 1}" in refused(flags(data, "--max_length", str(enough - 1), *more), capsys)
        manifest = prepare_tinystories.main(flags(data, "--max_length", str(enough), *more))
        assert manifest["rows"]["train"] > 0
        capsys.readouterr()


def test_a_corpus_that_knows_nothing_of_its_stories_is_refused(tmp_path, capsys):
    corpus_of([make_record(story(n)) for n in range(300)], tmp_path / "bare")
    there = ["instruct", "--corpus", "bare", "--data_cache_dir", str(tmp_path)]
    assert "--style prompt: no story of bare has a prompt, words or features; " in refused(there, capsys)
    assert "--style summary: no story of bare has a summary; give --style prompt" in refused(
        [*there, "--style", "summary"], capsys
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["bare"]


def test_a_set_may_be_made_again_after_it_was_removed_but_not_over_another(data, capsys):
    prepare_tinystories.main(flags(data))
    line = refused(flags(data), capsys)
    assert "tiny-instruct-prompt already exists" in line
    with pytest.raises(UsageError, match="already exists"):
        make_instruct_set(data / "tiny", data / "tiny-instruct-prompt", Recipe("prompt"))
    assert json.loads((data / "tiny-instruct-prompt" / "manifest.json").read_text())["style"] == "prompt"
