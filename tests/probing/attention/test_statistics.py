"""Statistics of heads: against loops of their definitions, planted heads, and controls that expose false findings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import neox
from tiny_models import KINDS, tiny_model, tiny_tokenizer

from lm_trials.probing.activation_store import padded
from lm_trials.probing.attention.flags import OF_STORIES, STATISTICS
from lm_trials.probing.attention.report import EVEN, UNREPEATED, UNTRAINED, Results, chosen_head, halves
from lm_trials.probing.attention.statistics import (
    AttentionTexts,
    Measured,
    Repeats,
    attention_maps,
    even_statistics,
    head_statistics,
    induction_scores,
    over_heads,
    repeats,
    token_labels,
)
from lm_trials.probing.tables import one_more


def random_weights(heads, length, seed, sharpness=3.0):
    """Attention weights of no model: each row a distribution over what it sees."""
    logits = np.random.default_rng(seed).normal(0, sharpness, (heads, length, length))
    logits[:, ~np.tri(length, dtype=bool)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def planted(length, look):
    """One head of which each query t looks at `look(t)` alone."""
    weights_HTT = torch.zeros(1, length, length)
    for query in range(length):
        weights_HTT[0, query, look(query)] = 1
    return weights_HTT


def by_definition(weights_TT):
    """The statistics of one head by loops over their definitions, in Python's floats."""
    rows = []
    for query in range(1, len(weights_TT)):
        seen = [float(weight) for weight in weights_TT[query][: query + 1]]
        entropy = -sum(weight * np.log(weight) for weight in seen if weight > 0)
        distance = sum(weight * (query - key) for key, weight in enumerate(seen))
        rows.append((seen[query - 1], seen[0], seen[query], distance, entropy, entropy / np.log(query + 1)))
    return np.mean(rows, axis=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 30.0]))
def test_statistics_are_their_definitions(length, seed, sharpness):
    weights_HTT = random_weights(3, length, seed, sharpness)
    found_HS = head_statistics(torch.from_numpy(weights_HTT)).numpy()
    assert found_HS.shape == (3, len(OF_STORIES))
    for head in range(3):
        np.testing.assert_allclose(found_HS[head], by_definition(weights_HTT[head]), atol=1e-9)
    assert ((found_HS >= 0) & (found_HS <= [1, 1, 1, length, np.log(length) + 1e-9, 1 + 1e-9])).all()
    if sharpness and length > 3:
        assert np.abs(found_HS[0] - found_HS[1]).max() > 1e-6


def named(weights_HTT):
    return dict(zip(OF_STORIES, head_statistics(weights_HTT)[0].tolist(), strict=True))


@pytest.mark.parametrize("length", [2, 3, 9])
def test_planted_heads_have_what_they_were_planted_with(length):
    queries = length - 1
    back = named(planted(length, lambda query: max(query - 1, 0)))
    assert back == {"previous": 1, "first": 1 / queries, "self": 0, "distance": 1, "entropy": 0, "relative_entropy": 0}
    alone = named(planted(length, lambda query: query))
    assert (alone["self"], alone["previous"], alone["distance"], alone["entropy"]) == (1, 0, 0, 0)
    sink = named(planted(length, lambda query: 0))
    assert (sink["first"], sink["previous"]) == (1, 1 / queries)
    assert sink["distance"] == pytest.approx(length / 2)
    even = torch.ones(1, length, length).tril() / torch.arange(1.0, length + 1)[:, None]
    np.testing.assert_allclose(head_statistics(even)[0].numpy(), even_statistics(length), rtol=1e-6)
    assert named(even)["relative_entropy"] == pytest.approx(1)
    assert np.abs(even_statistics(length) - even_statistics(length + 1)).max() > 0.05


def test_an_induction_head_has_a_score_of_1_and_the_others_do_not():
    start, length = 2, 5
    total = start + 2 * length

    def induction(query):
        return query - length + 1 if query >= start + length else 0

    assert induction_scores(planted(total, induction), start, length).tolist() == [[1.0]]
    for look in (lambda q: max(q - 1, 0), lambda q: max(q - length, 0), lambda q: max(q - length + 2, 0)):
        assert induction_scores(planted(total, look), start, length).item() < 1
    weights_HTT = random_weights(2, total, seed=1)
    expected = [
        np.mean([weights_HTT[head, start + length + k, start + k + 1] for k in range(length)]) for head in range(2)
    ]
    found = induction_scores(torch.from_numpy(weights_HTT), start, length)[:, 0]
    np.testing.assert_allclose(found, expected)
    even = torch.ones(1, total, total).tril() / torch.arange(1.0, total + 1)[:, None]
    assert induction_scores(even, start, length).item() == pytest.approx(Repeats([], [], start, length).even)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_sequences_repeat_only_by_the_repetition(length, seed):
    drawn = repeats(np.arange(100, 112), [1, 2], length, count=3, seed=seed)
    for twice, once in zip(drawn.repeated, drawn.unrepeated, strict=True):
        first, second = twice[2 : 2 + length], twice[2 + length :]
        assert twice[:2].tolist() == once[:2].tolist() == [1, 2]
        assert first.tolist() == second.tolist() == once[2 + length :].tolist()
        assert len(set(first.tolist())) == length
        assert len(set(once.tolist())) == len(once) == len(twice)
    again, other = (repeats(np.arange(100, 112), [1, 2], length, 3, number) for number in (seed, seed + 1))
    assert [ids.tolist() for ids in again.repeated] == [ids.tolist() for ids in drawn.repeated]
    assert [ids.tolist() for ids in other.repeated] != [ids.tolist() for ids in drawn.repeated]


TEXTS = [np.random.default_rng(length).integers(3, 60, length) for length in (7, 2, 12, 5, 7)]
BUILDERS = {**{kind: lambda kind=kind: tiny_model(kind) for kind in KINDS}, "neox": neox}


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_what_is_measured_is_transformers_own_attention(kind):
    """GPT-2, a Llama whose heads share keys, GPT-NeoX: text by text without padding, by loops in float64."""
    model = BUILDERS[kind]()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = [model(torch.tensor(ids_T[None]), output_attentions=True).attentions for ids_T in TEXTS]
    model.set_attn_implementation("sdpa")
    expected = [[[by_definition(weights_TT) for weights_TT in layer[0]] for layer in text] for text in own]
    found = over_heads(model, TEXTS, head_statistics, batch_size=3)
    assert found.shape == (5, 2, model.config.num_attention_heads, 6)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(found[:, :, 0] - found[:, :, 1]).max() > 1e-3  # heads differ
    assert model.config._attn_implementation == "sdpa"
    for ids_T, layers in zip(TEXTS, own, strict=True):
        np.testing.assert_allclose(attention_maps(model, ids_T), torch.stack(layers)[:, 0], atol=1e-6)


def test_batches_and_memory_change_no_number():
    """Where one layer of one text is more than is held, the layers are read one by one, a text at a time."""
    model = tiny_model("llama")
    whole = over_heads(model, TEXTS, head_statistics, batch_size=5)
    held = []

    def watched(weights_HTT):
        held.append(weights_HTT.numel())
        return head_statistics(weights_HTT)

    for batch_size, at_once in ((1, 1 << 30), (5, 1), (5, 4 * 4 * 12 * 12 * 3)):
        part = over_heads(model, TEXTS, watched, batch_size, at_once=at_once)
        np.testing.assert_allclose(part, whole, atol=1e-6)
    assert len(held) == 3 * 2 * len(TEXTS)
    other = over_heads(tiny_model("llama", seed=1), TEXTS, head_statistics, batch_size=5)
    assert np.abs(other - whole).max() > 1e-2


@pytest.mark.parametrize(("at_once", "widest"), [(1, 1), (4 * 4 * 144 * 2 * 2, 2), (1 << 30, 5)])
def test_no_more_weights_are_held_than_asked_for(at_once, widest, monkeypatch):
    """Four heads, two layers, twelve tokens: 2,304 bytes a layer and text; a batch holds as many as fit."""
    sizes = []
    monkeypatch.setattr(
        "lm_trials.probing.activation_store.padded",
        lambda documents: (sizes.append(len(documents)), padded(documents))[1],
    )
    over_heads(tiny_model("llama"), TEXTS, head_statistics, batch_size=16, at_once=at_once)
    assert max(sizes) == widest
    assert sum(sizes) == len(TEXTS) * (2 if at_once == 1 else 1)


def test_tokens_are_labelled_as_they_are_read():
    tokenizer = tiny_tokenizer()
    text = " a cat <b> 😀\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    labels = token_labels(tokenizer, [tokenizer.bos_token_id, *ids])
    assert labels[0] == tokenizer.bos_token
    assert len(labels) == len(ids) + 1
    assert any(label.startswith(" ") and "cat" in label for label in labels)
    assert {"<0xF0>", "<0x9F>"} <= set(labels)  # a part of a character, as the tokenizer has it
    assert "" not in labels
    assert not any("\N{REPLACEMENT CHARACTER}" in label for label in labels)


# What follows from the numbers: leaders, controls, changes.


def measured(label, stories_NLHS, repeated=None, unrepeated=None, run="", step=None):
    layers, heads = stories_NLHS.shape[1:3]
    return Measured(
        label, run or label, step, None, stories_NLHS, repeated, unrepeated, np.zeros((layers, heads, 3, 3))
    )


COUNT, SHAPE = 40, (3, 4)
LENGTHS = np.random.default_rng(0).integers(8, 30, COUNT)
EVEN_NS = np.stack([even_statistics(length) for length in LENGTHS])


def noisy(label, seed, spread=0.001, texts=0.01, **more):
    """A model whose heads look evenly but for a little of their own, which is the same on every story."""
    generator = np.random.default_rng(seed)
    own_LHS = generator.normal(0, spread, (*SHAPE, 6))
    return measured(
        label, EVEN_NS[:, None, None] + own_LHS + generator.normal(0, texts * spread, (COUNT, *SHAPE, 6)), **more
    )


READING = AttentionTexts(
    [np.zeros(length, dtype=int) for length in LENGTHS], np.zeros(3, dtype=int), ["a", "b", "c"], None
)
RANDOM = [noisy("untrained", seed) for seed in range(100, 105)]


def results(*models, random=RANDOM):
    return Results(models, random, READING, seed=0)


def with_head(model, layer, head, statistic, values):
    stories = model.stories_NLHS.copy()
    stories[:, layer, head, OF_STORIES.index(statistic)] = values
    return replace(model, stories_NLHS=stories)


def test_a_planted_head_is_found_and_reported_on_other_stories():
    values_N = np.random.default_rng(3).normal(0.6, 0.05, COUNT)
    model = with_head(noisy("a", 1), 2, 1, "previous", values_N)
    found = results(model)
    leader = found.leader(model, "previous")
    choose, report = halves(COUNT, 0)
    assert (leader.layer, leader.head, leader.within) == (2, 1, [])
    assert leader.estimate.estimate == pytest.approx(values_N[report].mean())
    assert leader.estimate.n == len(report) == COUNT - len(choose)
    assert set(choose) | set(report) == set(range(COUNT))
    assert leader.estimate.estimate != pytest.approx(values_N.mean())
    sentence = found.finding("previous").sentence
    assert sentence.startswith(
        f"a: of 12 heads layer 2 head 1 has the most previous-token mass, {values_N[report].mean():.3f}"
    )
    control = leader.controls[EVEN]
    assert control.value.estimate == pytest.approx(EVEN_NS[report, 0].mean())
    assert control.difference.estimate == pytest.approx((values_N - EVEN_NS[:, 0])[report].mean())


def test_the_head_with_least_entropy_must_lie_below():
    model = with_head(noisy("a", 1), 0, 3, "entropy", 0.5)
    leader = results(model).leader(model, "entropy")
    assert (leader.layer, leader.head, leader.within) == (0, 3, [])
    upside_down = with_head(noisy("a", 1), 0, 3, "entropy", 9.0)
    assert (results(upside_down).leader(upside_down, "entropy").head, STATISTICS["entropy"].most) != (3, True)


def test_an_untrained_model_is_no_finding_though_it_lies_beyond_even_attention():
    """The false finding: weights do not vary by story, so any head is beyond even attention with certainty."""
    fooled, shown = 0, 0
    for seed in range(40):
        model = noisy("a", seed)
        leader = results(model).leader(model, "previous")
        fooled += EVEN not in leader.within
        shown += not leader.within
    assert fooled == 40
    assert shown <= 3  # 2.5 % of 40 is one
    assert leader.within == [UNTRAINED]
    assert results(model).finding("previous").sentence.startswith("a: no significant head; layer")


def test_untrained_models_have_the_choice_that_the_model_has():
    """The control is the largest of all heads too: a usual head of an untrained model would be beaten by chance."""
    found = results(noisy("a", 1))
    _, report = halves(COUNT, 0)
    for statistic, most in (("previous", np.max), ("entropy", np.min)):
        # Heads of these models differ so much more than stories that both halves have the same order.
        largest = [most(model.values(statistic)[report].mean(axis=0)) for model in RANDOM]
        usual = np.mean([model.values(statistic)[report].mean() for model in RANDOM])
        reported = found.untrained_leader(statistic).estimate
        assert reported == pytest.approx(np.mean(largest), abs=1e-9)
        assert abs(reported - usual) > 0.001


def test_choosing_and_reporting_on_the_same_stories_would_overstate():
    """Twelve heads that differ by nothing but noise: on the stories it was chosen on, the largest seems larger."""
    same, other = [], []
    for seed in range(30):
        values_NLH = np.random.default_rng(seed).normal(0, 1, (COUNT, *SHAPE))
        choose, report = halves(COUNT, seed)
        place = chosen_head(values_NLH[choose], most=True)
        same.append(values_NLH[choose][:, *place].mean())
        other.append(values_NLH[report][:, *place].mean())
    assert np.mean(same) > 0.25
    assert abs(np.mean(other)) < 0.1


def test_one_more_draw_lies_within_95_times_in_100():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        *draws, last = generator.normal(3, 2, 6)
        interval = one_more(np.array(draws), "x")
        inside += interval.lower <= last <= interval.upper
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def test_changes_are_paired_by_story_and_a_copy_shows_none():
    base = noisy("base", 1)
    moves = np.linspace(0.099, 0.101, len(base.values("previous")))
    moved = with_head(
        replace(base, label="moved", run="moved"), 1, 2, "previous", base.values("previous")[:, 1, 2] - moves
    )
    copy = replace(base, label="copy", run="copy")
    found = results(base, moved, copy)
    changes = {(change.model.label, change.statistic): change for change in found.changes}
    change = changes["moved", "previous"]
    assert (change.layer, change.head) == (1, 2)
    assert change.estimate.estimate == pytest.approx(-0.1, abs=5e-4)
    assert changes["copy", "previous"].estimate.estimate == 0
    assert np.isnan(changes["copy", "previous"].estimate.upper)
    sentence = found.finding("previous").sentence
    assert "From base to moved layer 1 head 2 changes most, by -0.100 [-0.10" in sentence
    assert "From base to copy no head changes significantly" in sentence
    # All heads beside it: one of them moved, by 0.1; where nothing moved the average is 0.
    heads = base.values("previous").shape[1] * base.values("previous").shape[2]
    assert change.controls["all heads"].value.estimate == pytest.approx(0.1 / heads, rel=0.01)
    assert change.controls["all heads"].difference.estimate == pytest.approx(0.1 - 0.1 / heads, rel=0.01)
    assert f"(mean of all heads, each in its own direction: {0.1 / heads:.3f} [" in sentence
    assert changes["copy", "previous"].controls["all heads"].value.estimate == 0


def test_a_head_that_moved_no_further_than_all_is_told_beside_them():
    base = noisy("base", 1)
    shifted = replace(base, label="b", run="b", stories_NLHS=base.stories_NLHS + 0.1)
    (change,) = [change for change in results(base, shifted).changes if change.statistic == "previous"]
    assert change.controls["all heads"].value.estimate == pytest.approx(change.estimate.estimate)
    assert change.within == ["all heads"]


def test_noise_of_stories_is_no_change():
    base = noisy("base", 1)
    jitter = np.random.default_rng(5).normal(0, 0.1, base.stories_NLHS.shape)
    shown = 0
    for statistic in OF_STORIES:
        found = results(base, replace(base, label="b", run="b", stories_NLHS=base.stories_NLHS + jitter))
        shown += "changes most" in found.finding(statistic).sentence
    assert shown <= 1


def test_a_head_that_looks_so_far_back_anyway_is_no_induction_head():
    """The control of what is not repeated: the same score there shows that the head does not match tokens."""
    drawn = repeats(np.arange(50, 200), [1], length=20, count=30, seed=0)
    generator = np.random.default_rng(0)
    score, alone = (generator.normal(0.03, 0.001, (30, *SHAPE)) for _ in range(2))
    score[:, 1, 1] = alone[:, 1, 1] = generator.normal(0.5, 0.01, 30)  # by position
    random = [
        replace(model, repeated_NLH=score[:, ::-1] * 0 + 0.03 + 0.001 * n, unrepeated_NLH=alone)
        for n, model in enumerate(RANDOM)
    ]
    model = replace(noisy("a", 1), repeated_NLH=score, unrepeated_NLH=alone)
    found = Results([model], random, replace(READING, repeats=drawn), seed=0)
    assert found.leader(model, "induction").within == [UNREPEATED]
    assert "is not beyond not repeated" in found.finding("induction").sentence
    more = generator.normal(0.1, 0.001, score.shape)
    matching = replace(model, repeated_NLH=np.where(np.arange(4) == 1, score + more, score))
    found = Results([matching], random, replace(READING, repeats=drawn), seed=0)
    leader = found.leader(matching, "induction")
    assert (leader.layer, leader.head, leader.within) == (1, 1, [])
    assert leader.estimate.n == 15
    assert "15 held-out sequences" in found.finding("induction").sentence
    assert set(leader.controls) == {UNTRAINED, EVEN, UNREPEATED}


def test_steps_follow_the_head_that_leads_in_the_end():
    stages = [with_head(noisy(f"r-{n}", n, run="r", step=n), 2, 2, "previous", 0.1 * n) for n in (1, 2, 3)]
    final = replace(stages[-1], label="r")
    found = results(*stages, final)
    assert [model.label for model in found.finals] == ["r"]
    rows = [row for row in found.step_rows() if row["statistic"] == "previous"]
    told = [row for row in rows if row["role"] == "finding"]
    assert [(row["step"], row["layer"], row["head"]) for row in told] == [(1, 2, 2), (2, 2, 2), (3, 2, 2)]
    assert [row["estimate"] for row in told] == pytest.approx([0.1, 0.2, 0.3])
    assert {row["control"] for row in rows if row["role"] == "control"} == {UNTRAINED, EVEN}
    assert {"estimate", "lower", "upper", "n", "unit", "difference", "difference_lower"} <= set(rows[1])
