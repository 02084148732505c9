"""Embeddings: one basis for all, movement and neighbours against numpy, categories that shuffling would expose."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from sklearn.decomposition import PCA
from tiny_models import KINDS, tiny_model, tiny_tokenizer

from lm_trials.console import UsageError
from lm_trials.models.adapters import without_noise
from lm_trials.probing.embeddings.categories import (
    Categories,
    agreement,
    categories_of,
    separation,
    story_words,
    surface_categories,
)
from lm_trials.probing.embeddings.figures import points_figure
from lm_trials.probing.embeddings.geometry import (
    Embeddings,
    Movement,
    Words,
    difference_of,
    embeddings_of,
    nearest_tokens,
    project,
    vocab_of,
)
from lm_trials.stories.generated import vocabulary


def moved_in_part(seed=0, tokens=40, width=12):
    """Two models: the first half of the tokens stays where it is, the other moves far along one direction."""
    draws = np.random.default_rng(seed)
    before = draws.standard_normal((tokens, width)) * np.linspace(2, 0.1, width)
    after = before.copy()
    after[tokens // 2 :, -1] += 9
    return [Embeddings("before", before), Embeddings("after", after)]


# One basis


@given(st.integers(0, 20), st.sampled_from(["joint", "last"]))
@settings(max_examples=15, deadline=None)
def test_what_did_not_move_stays_in_the_picture(seed, basis):
    models = moved_in_part(seed)
    points = project(models, np.arange(40), basis, "pca", 0).points
    assert np.array_equal(points["before"][:20], points["after"][:20])
    assert (np.linalg.norm(points["after"][20:] - points["before"][20:], axis=1) > 1).all()


def test_bases_fitted_one_by_one_would_move_it():
    models = moved_in_part()
    apart = [project([model], np.arange(40), "joint", "pca", 0).points[model.label] for model in models]
    assert np.abs(apart[0][:20] - apart[1][:20]).max() > 0.5


def test_axes_are_scikit_learns_but_for_their_sign():
    models = moved_in_part()
    picture = project(models, np.arange(40), "joint", "pca", 0)
    stacked = np.concatenate([model.table_VD for model in models])
    pca = PCA(2).fit(stacked)
    assert picture.explained == pytest.approx(pca.explained_variance_ratio_)
    assert np.abs(np.concatenate(list(picture.points.values()))) == pytest.approx(np.abs(pca.transform(stacked)))
    flipped = [Embeddings(model.label, -model.table_VD) for model in models]
    same = project(flipped, np.arange(40), "joint", "pca", 0).points["after"]
    assert same == pytest.approx(-picture.points["after"])  # the axes are the same, so the points are turned round
    other = project(models, np.arange(40), "last", "pca", 0)
    assert other.explained != pytest.approx(picture.explained)
    assert all(0 < share <= 1 for share in picture.explained_of.values())


def test_umap_gets_all_models_at_once(monkeypatch):
    import sys
    import types

    fitted = []

    class Umap:
        def __init__(self, **settings):
            self.seed = settings["random_state"]

        def fit(self, table_ND):
            fitted.append(table_ND)
            self.embedding_ = table_ND[:, :2]

        def transform(self, table_ND):
            return table_ND[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    models = moved_in_part()
    joint = project(models, np.arange(40), "joint", "umap", 3)
    last = project(models, np.arange(40), "last", "umap", 3)
    assert [len(table) for table in fitted] == [80, 40]
    for picture in (joint, last):
        assert np.array_equal(picture.points["after"], models[1].table_VD[:, :2])
        assert np.array_equal(picture.points["before"], models[0].table_VD[:, :2])


# What is read


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_what_the_layers_do(kind):
    model = tiny_model(kind)
    assert np.array_equal(embeddings_of(model, "input", 60), model.get_input_embeddings().weight[:60].double().detach())
    head = model.get_output_embeddings().weight.double().detach().numpy()
    assert embeddings_of(model, "output", 64) == pytest.approx(head, abs=1e-6)
    with pytest.raises(UsageError, match=r"has 64 embeddings and its tokenizer 65 tokens"):
        embeddings_of(model, "input", 65)


def test_an_adapter_on_the_embeddings_counts_and_another_does_not():
    plain = embeddings_of(tiny_model("llama"), "input", 64)
    for target, changed in (("q_proj", False), ("embed_tokens", True)):
        with without_noise():
            adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=[target]))
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_" in name:
                    tensor.fill_(0.3)
        assert np.allclose(embeddings_of(adapted, "input", 64), plain) is not changed, target


# Movement and neighbours


@given(st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_movement_is_the_cosine_and_the_norm(seed):
    before, after = np.random.default_rng(seed).standard_normal((2, 6, 5))
    moved = Movement.between(before, after)
    for token in range(6):
        cosine = before[token] @ after[token] / np.linalg.norm(before[token]) / np.linalg.norm(after[token])
        assert moved.distance_V[token] == pytest.approx(1 - cosine)
        assert moved.relative_V[token] == pytest.approx(
            np.linalg.norm(after[token] - before[token]) / np.linalg.norm(before[token])
        )
    longer = Movement.between(before, 3 * before)  # weight decay alone changes no direction
    assert longer.distance_V == pytest.approx(0, abs=1e-12)
    assert longer.relative_V == pytest.approx(2)


def test_tokens_seen_are_told_from_the_others():
    draws = np.random.default_rng(0)
    seen = np.arange(200) < 120
    values = draws.gamma(2, 1, 200) + 2 * seen
    found = difference_of(values, seen, "cosine distance", seed=0)
    assert found.estimate == pytest.approx(values[seen].mean() - values[~seen].mean())
    assert found.lower > 1.3
    nothing = difference_of(values, draws.permutation(seen), "cosine distance", seed=0)
    assert nothing.lower < 0 < nothing.upper
    holes = np.where(np.arange(200) % 7 == 0, np.nan, values)  # a row of zeros has no relative move
    assert difference_of(holes, seen, "u", 0).n == np.isfinite(holes[~seen]).sum() < 80  # the fewer of the two


def test_neighbours_are_the_largest_cosines():
    table = np.random.default_rng(0).standard_normal((30, 8))
    cosines = (table @ table[4]) / np.linalg.norm(table, axis=1) / np.linalg.norm(table[4])
    expected = [token for token in np.argsort(-cosines) if token != 4][:5]
    found = nearest_tokens(table, 4, 5)
    assert [token for token, _ in found] == expected
    assert [cosine for _, cosine in found] == pytest.approx(cosines[expected])


# Categories


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
    assert found.left_out.startswith("1 of 7 words are of several tokens")
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
    line = r"written with \d+ tokens\); give a word of one, as \w+, \w+, \w+$"
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
    assert drawn.left_out == "30 of 100 tokens with a category are drawn"
    assert (many.drawn(30, seed=1).tokens_N != drawn.tokens_N).any()
    assert many.drawn(100, seed=0) is many


def test_a_category_of_which_hardly_any_are_drawn_is_left_out():
    many = Categories(np.arange(103), np.array(["a", "b"] * 50 + ["few"] * 3), "")
    drawn = many.drawn(20, seed=0)
    assert set(drawn.counts) == {"a", "b"}
    assert drawn.left_out.endswith("20 of 103 tokens with a category are drawn; fewer than 3 tokens have few")
    lone = Categories(np.arange(103), np.array(["a"] * 100 + ["few"] * 3), "")
    with pytest.raises(UsageError, match=r"--max_tokens 20: fewer than two categories .*; give more than 20"):
        lone.drawn(20, seed=0)


def test_panels_share_their_limits():
    points = [
        {"model": model, "category": kind, "x": x, "y": -x, "step": step}
        for model, step, x in (("first", 10, 1.0), ("last", 20, 5.0))
        for kind in ("a", "b")
    ]
    axes = [axes for axes in points_figure(points, ["first", "last"], "title", ("x", "y")).axes if axes.get_visible()]
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_xlim()[1] > 5
    assert axes[1].get_title() == "last (step 20)"
    assert axes[1].collections[0].get_offsets().tolist() == [[5.0, -5.0]]
