"""Categories of tokens: planted ones are told apart, noise is not, and what is left out is counted."""

from collections import Counter

import numpy as np
import pytest
from tiny_models import tiny_tokenizer

from lm_trials.console import UsageError
from lm_trials.probing.embeddings.categories import (
    Categories,
    agreement,
    categories_of,
    separation,
    story_words,
    surface_categories,
)
from lm_trials.probing.embeddings.geometry import Words, vocab_of
from lm_trials.stories.generated import vocabulary


def clusters(apart, tokens=60, width=8, seed=0):
    draws = np.random.default_rng(seed)
    names = np.array(["a", "b", "c"] * (tokens // 3))
    centres = {name: draws.standard_normal(width) * apart for name in "abc"}
    return draws.standard_normal((tokens, width)) + np.array([centres[name] for name in names]), names


def test_planted_clusters_are_told_apart_and_noise_is_not():
    for apart, known in ((4.0, True), (0.0, False)):
        table, names = clusters(apart)
        found = separation(table, names, nearest=5, permutations=60, seed=0)
        for name in ("5_nearest", "silhouette"):
            assert (found[name].found.lower > found[name].shuffled.upper) is known, (name, apart)
            assert (found[name].p < 0.05) is known
        assert found["5_nearest"].shuffled.estimate == pytest.approx(19 / 59, abs=0.03)  # what drawing gives


def test_agreement_is_counted_as_written():
    table, names = clusters(2.0)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    shares = []
    for token in range(len(table)):
        near = [other for other in np.argsort(-(unit @ unit[token])) if other != token][:5]
        shares.append(np.mean(names[near] == names[token]))
    found = separation(table, names, nearest=5, permutations=20, seed=0)["5_nearest"]
    assert found.found.estimate == pytest.approx(np.mean(shares))
    assert agreement(np.array([[1], [0]]), np.array(["x", "y"])).tolist() == [0, 0]


def test_categories_of_a_picture_do_not_enter_the_measure():
    """Two clusters that differ in a direction of little variance: no picture of two axes shows them."""
    draws = np.random.default_rng(0)
    names = np.array(["a", "b"] * 50)
    table = draws.standard_normal((100, 3)) * [0.1, 0.1, 0.05] + [0, 0, 1.0]
    table = np.concatenate([table, np.where(names == "a", 0.5, -0.5)[:, None]], axis=1)
    assert separation(table, names, 5, 20, 0)["5_nearest"].found.estimate == pytest.approx(1)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(400)  # in which every word of the text is a token


def test_surface_categories_cover_every_token_once(tokenizer):
    found = surface_categories(tokenizer)
    assert set(found) == set(range(vocab_of(tokenizer)))
    words = Words(tokenizer)
    assert found[words.token("cat")] == "begins a word"
    assert {found[token] for token in tokenizer.all_special_ids} == {"special"}
    assert found[tokenizer.convert_tokens_to_ids("!")] == "punctuation"


def test_categories_of_a_file_count_what_they_leave_out(tokenizer, tmp_path):
    words = {"cat": "animal", "dog": "animal", "fox": "animal", "sat": "verb", "jumps": "verb", "over": "verb"}
    path = tmp_path / "kinds.csv"
    path.write_text("word,category\n" + "".join(f"{word},{kind}\n" for word, kind in words.items()) + "zebra,animal\n")
    found = categories_of(str(path), tokenizer)
    assert found.counts == {"animal": 3, "verb": 3}
    assert found.left_out.startswith("1 of 7 words consist of several tokens")
    assert [str(name) for name in found.names_N[found.tokens_N == Words(tokenizer).token("dog")]] == ["animal"]
    path.write_text("word,category\ncat,animal\nsat,verb\n")
    with pytest.raises(UsageError, match=r"fewer than two categories have 3 tokens or more \(animal 1, verb 1"):
        categories_of(str(path), tokenizer)
    path.write_text("word,category\ncat\n")
    with pytest.raises(UsageError, match="a CSV with a header and both in each line"):
        categories_of(str(path), tokenizer)


def test_tokens_never_seen_make_no_category(tokenizer):
    """The lump of what training never saw: told apart as "bytes" where it is let in, and by the mend not."""
    surface = surface_categories(tokenizer)
    draws = np.random.default_rng(0)
    counts = np.array([surface[token] not in ("byte", "special") and draws.random() < 0.6 for token in sorted(surface)])
    table = draws.standard_normal((len(counts), 16))
    table[counts == 0] += 3
    of = categories_of("surface", tokenizer, counts.astype(int))
    assert set(of.tokens_N.tolist()) <= set(np.flatnonzero(counts).tolist())
    assert len(of.counts) >= 2
    unseen = (counts == 0).sum()
    assert f"{unseen} of {len(counts)} tokens with a category never occur in the training data" in of.left_out
    shown = {}
    for name, tokens, kinds in (
        ("mended", of.tokens_N, of.names_N),
        ("without", np.arange(len(counts)), np.array([surface[token] for token in range(len(counts))])),
    ):
        found = separation(table[tokens], kinds, 5, 60, 0)["5_nearest"]
        shown[name] = found.found.lower > found.shuffled.upper
    assert shown == {"mended": False, "without": True}


def test_without_a_data_set_bytes_and_special_tokens_have_no_category(tokenizer):
    found = categories_of("surface", tokenizer)
    left = [token for token, name in surface_categories(tokenizer).items() if name in ("byte", "special")]
    assert len(left) > 100
    assert not set(left) & set(found.tokens_N.tolist())
    assert f"{len(left)} byte and special tokens are left out" in found.left_out


def test_a_word_of_several_tokens_is_refused_with_three_that_are_one(tokenizer):
    words = Words(tokenizer)
    line = r"--words zebra consists of \d+ tokens; use words of one token, such as \w+, \w+, \w+$"
    with pytest.raises(UsageError, match=line) as refused:
        words.check(["zebra"])
    suggested = str(refused.value).rpartition(" as ")[2].split(", ")
    assert len(words.check(suggested)) == 3


def test_no_word_of_the_stories_is_of_two_groups():
    words = story_words()
    assert len(words) > 150
    sizes = Counter(words.values())
    assert set(sizes) == {"name", "animal", "person", "thing", "verb", "adjective"}
    assert sizes["name"] == len({*vocabulary.BOY_NAMES, *vocabulary.GIRL_NAMES})
    assert sizes["animal"] == len({*vocabulary.ANIMALS, *vocabulary.BABIES})
    assert sizes["thing"] == len({noun.word for noun in vocabulary.NOUNS})
    assert sizes["person"] == len({*vocabulary.PARENTS, *vocabulary.HELPERS})


def test_more_tokens_than_asked_for_are_drawn():
    many = Categories(np.arange(100), np.array(["a", "b"] * 50), "")
    drawn = many.drawn(30, seed=0)
    assert len(set(drawn.tokens_N.tolist())) == 30
    assert (drawn.names_N == many.names_N[drawn.tokens_N]).all()
    assert drawn.left_out.startswith("30 of 100 tokens")
    assert (many.drawn(30, seed=1).tokens_N != drawn.tokens_N).any()
    assert many.drawn(100, seed=0) is many


def test_a_category_of_which_hardly_any_are_drawn_is_left_out():
    many = Categories(np.arange(103), np.array(["a", "b"] * 50 + ["few"] * 3), "")
    drawn = many.drawn(20, seed=0)
    assert set(drawn.counts) == {"a", "b"}
    assert drawn.left_out.endswith(
        "20 of 103 tokens with a category are drawn; categories of fewer than 3 tokens are left out: few"
    )
    lone = Categories(np.arange(103), np.array(["a"] * 100 + ["few"] * 3), "")
    with pytest.raises(UsageError, match=r"--max_tokens 20: fewer than two categories .*; raise it"):
        lone.drawn(20, seed=0)
