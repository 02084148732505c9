"""What patching measures: planted differences are found where they are, disturbances are told as such, n is honest."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, tiny_model

from lm_trials.probing.interventions import ModelPart
from lm_trials.probing.patching.figures import patching_figure
from lm_trials.probing.patching.report import (
    HELD_OUT,
    Direction,
    Measured,
    chosen_runs,
    chosen_targets,
    direction_rows,
    direction_sentences,
)
from lm_trials.probing.patching.sides import Target, targets_of
from lm_trials.probing.patching.swaps import (
    DONOR,
    MOVED,
    OTHER,
    RANDOM,
    RECIPIENT,
    SWAP,
    check_swaps,
    control_kinds,
    moved_rows,
    random_rows,
    sweep,
)
from lm_trials.probing.patching.tasks import Spot, StoryTask

COMPONENTS = ("embeddings", "residual", "attention", "mlp", "heads")
KINDS_OF_SWAPS = (SWAP, RANDOM, OTHER, MOVED)


def story_task(texts=10, seed=0, model=None):
    """Random texts of 5 to 12 tokens, or such as a model writes; all tokens but the first two count."""
    rng = np.random.default_rng(seed)
    ids_BT = torch.from_numpy(rng.integers(3, 60, size=(texts, 12)))
    for place in range(1, 12) if model is not None else ():
        chances_BV = model(input_ids=ids_BT[:, :place], use_cache=False).logits[:, -1].softmax(-1)
        ids_BT[:, place] = torch.multinomial(chances_BV, 1, generator=torch.Generator().manual_seed(place))[:, 0]
    ids = [row[:length].numpy() for row, length in zip(ids_BT, rng.integers(5, 13, size=texts).tolist(), strict=True)]
    regions = [np.arange(len(ids_T)) >= 2 for ids_T in ids]
    places = [list(range(len(ids_T))) for ids_T in ids]
    weights = {"story": np.array([float(counts_T.sum()) for counts_T in regions])}
    return StoryTask(ids, ids, weights, {"story": "nats per token"}, [Spot("all", places, places)], {"story": regions})


def planted(kind, part="mlp"):
    """A donor, and a recipient that differs from it in one part of block 1 alone."""
    donor = tiny_model(kind, seed=1).requires_grad_(False)
    recipient = copy.deepcopy(donor)
    block = (recipient.model.layers if kind == "llama" else recipient.transformer.h)[1]
    torch.manual_seed(9)
    for weight in getattr(block, part).parameters():
        torch.nn.init.normal_(weight, std=1.0)
    return donor, recipient


def parts_of(model, components):
    config = model.config
    shape = SimpleNamespace(depth=config.num_hidden_layers, num_heads=config.num_attention_heads)
    return targets_of(shape, components)


def measured_direction(donor, recipient, task, targets=None, kinds=KINDS_OF_SWAPS, batch_size=16, seed=0):
    targets = targets or parts_of(recipient, COMPONENTS)
    scores = sweep(donor, recipient, task, dict.fromkeys(targets, kinds), batch_size, seed, "a test")
    return Direction("donor", "recipient", scores, task, check_swaps(donor, recipient, task, targets), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("attribute", "component"), [("mlp", "mlp"), ("attn", "attention")])
def test_a_difference_in_one_part_is_found_there_and_nowhere_else(kind, attribute, component):
    if kind == "llama" and attribute == "attn":
        attribute = "self_attn"
    donor, recipient = planted(kind, attribute)
    direction = measured_direction(donor, recipient, story_task(40, model=donor))
    measured = direction.measured(0)
    share = {(run[1], run[2]): measured.share(run).estimate for run in measured.runs if run[1]}
    assert share[Target(component, 1), SWAP] == pytest.approx(1, abs=1e-4)
    assert share[Target("residual", 1), SWAP] == pytest.approx(1, abs=1e-4)
    below = [Target("embeddings"), Target("residual", 0), Target("attention", 0), Target("mlp", 0)]
    below += [target for target in parts_of(recipient, ["heads"]) if target.block == 0]
    assert {share[target, SWAP] for target in below} == {0.0}  # what is alike is swapped for the same, to the bit
    assert share[Target(component, 1), RANDOM] < 0.9
    told, controls = direction_sentences(direction, 0)
    name = "the MLP of block 1" if component == "mlp" else "the attention of block 1"
    assert f"swapping {name} closes 1.000 of it, the most of 5 components (n=20, held-out texts)" in told
    assert "a random direction of the same size" in controls
    assert chosen_targets(direction, 0)[0] == Target(component, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_log_likelihoods_and_shares_are_ratios_of_sums(kind):
    """Recomputed text by text, without padding or hooks, in double precision."""
    donor, recipient = planted(kind)
    task = story_task(7)
    direction = measured_direction(donor, recipient, task, [Target("mlp", 1)])
    sums = {}
    for name, model in ((DONOR, donor), (RECIPIENT, recipient)):
        model = copy.deepcopy(model).double()
        nats = [model(input_ids=torch.from_numpy(ids_T)[None]).logits[0].log_softmax(-1) for ids_T in task.donor_ids]
        sums[name] = [
            sum(float(nats_TV[place - 1, ids_T[place]]) for place in range(2, len(ids_T)))
            for nats_TV, ids_T in zip(nats, task.donor_ids, strict=True)
        ]
        assert direction.scores["", None, name]["story"] == pytest.approx(sums[name], abs=1e-4)
    measured = direction.measured(0)
    gap = (sum(sums[DONOR]) - sum(sums[RECIPIENT])) / sum(len(ids_T) - 2 for ids_T in task.donor_ids)
    assert measured.gap().estimate == pytest.approx(gap, abs=1e-5)
    run = ("all", Target("mlp", 1), RANDOM)
    changed = direction.scores[run]["story"].sum() - sum(sums[RECIPIENT])
    assert measured.share(run).estimate == pytest.approx(changed / (sum(sums[DONOR]) - sum(sums[RECIPIENT])), abs=1e-4)
    assert measured.change(run).estimate == pytest.approx(measured.share(run).estimate * gap, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing_not_even_the_controls(kind):
    donor = planted(kind)[0]
    targets = [Target("residual", 0), Target("mlp", 1), Target("heads", 1, 0)]
    task = story_task(7)
    ours, theirs, other = (
        measured_direction(donor, tiny_model(kind, seed=2), task, targets, batch_size=size, seed=seed).scores
        for size, seed in ((2, 0), (7, 0), (7, 1))
    )
    assert ours.keys() == theirs.keys()
    for run, scores in ours.items():
        assert scores["story"] == pytest.approx(theirs[run]["story"], abs=1e-4)
        differs = run[2] in (RANDOM, MOVED)  # what is drawn depends on the seed
        assert (scores["story"] == pytest.approx(other[run]["story"], abs=1e-3)) is not differs


@pytest.mark.parametrize("kind", KINDS)
def test_models_alike_have_no_gap_to_close(kind):
    model = tiny_model(kind, seed=1)
    direction = measured_direction(model, copy.deepcopy(model), story_task(), [Target("mlp", 0), Target("mlp", 1)])
    told, controls = direction_sentences(direction, 0)
    assert "no gap to close, as donor and recipient differ by 0.0000 [no interval] nats per token (n=10)" in told
    assert "no controls, as there is no gap" in controls
    rows = direction_rows(direction, 0)
    assert {row["quantity"] for row in rows} == {"value", "gap", "change"}
    assert chosen_targets(direction, 0) == []
    assert patching_figure(rows, "change").axes


def test_what_any_disturbance_does_is_no_finding():
    """Scores planted in which the best part closes half of the gap, and so does a random direction in its place."""
    rng = np.random.default_rng(0)
    task = story_task(40)
    weights = task.weights["story"]
    targets = [Target("mlp", block) for block in range(3)]
    for disturbed, expected in (
        (0.5, "no significant effect among 3 components: the best, swapping the MLP of block 1"),
        (0.1, "the most of 3"),
    ):
        scores = {}
        base = rng.normal(size=40) - 3 * weights
        runs = {("", None, RECIPIENT): 0.0, ("", None, DONOR): 1.0}
        runs |= {("all", target, SWAP): (0.5 if target.block == 1 else 0.1) for target in targets}
        runs |= {("all", target, RANDOM): disturbed for target in targets}
        for run, share in runs.items():
            scores[run] = {"story": base + weights * (share + 0.05 * rng.normal(size=40))}
        direction = Direction("donor", "recipient", scores, task, None, 2)
        assert expected in direction_sentences(direction, 0)[0]


def test_the_best_of_many_that_do_nothing_is_told_on_texts_it_was_not_chosen_on():
    """Twenty parts of pure noise: the best one's share on the half it was chosen on is no finding."""
    rng = np.random.default_rng(0)
    on_chosen, told_on, shown = [], [], 0
    task = story_task(20)
    for _ in range(15):
        scores = {}
        scores[("", None, RECIPIENT)] = {"story": np.zeros(20)}
        scores[("", None, DONOR)] = {"story": task.weights["story"]}
        for block in range(20):
            for kind in (SWAP, RANDOM):
                noise = {"story": task.weights["story"] * rng.normal(size=20)}
                scores["all", Target("mlp", block), kind] = noise
        direction = Direction("donor", "recipient", scores, task, None, 20)
        measured = direction.measured(0)
        (chosen,) = chosen_runs(measured)
        on_chosen.append(measured.share(chosen, "choosing half").estimate)
        told_on.append(measured.share(chosen, HELD_OUT).estimate)
        shown += "no significant effect" not in direction_sentences(direction, 0)[0]
    assert np.mean(on_chosen) > 0.4
    assert abs(np.mean(told_on)) < 0.2
    assert shown <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_difference_that_is_the_same_everywhere_moves_with_its_token(kind):
    """The donor adds one vector at every token: found, and the moved differences tell that it does not depend on it."""
    donor, recipient = planted(kind)
    recipient = copy.deepcopy(donor)
    shift = torch.randn(16, generator=torch.Generator().manual_seed(0)) * 2
    (donor.model.layers if kind == "llama" else donor.transformer.h)[1].register_forward_hook(
        lambda module, inputs, output: output + shift
    )
    task = story_task(24, model=donor)
    measured = measured_direction(donor, recipient, task, [Target("residual", 1)]).measured(0)
    share = {run[2]: measured.share(run).estimate for run in measured.runs if run[1]}
    assert share[SWAP] == pytest.approx(1, abs=1e-4)
    assert share[MOVED] == pytest.approx(1, abs=1e-4)
    assert abs(share[RANDOM] - 1) > 0.05
    donor, recipient = planted(kind)  # the neighbour, whose difference depends on the token
    task = story_task(24, model=donor)
    measured = measured_direction(donor, recipient, task, [Target("residual", 1)]).measured(0)
    assert measured.share(("all", Target("residual", 1), MOVED)).estimate < 0.9


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_disturbances_are_of_the_same_size(texts, tokens, seed):
    rng = torch.Generator().manual_seed(seed)
    own_KD, donor_KD = (torch.randn(texts * tokens, 8, generator=rng) for _ in range(2))
    text_K = np.repeat(np.arange(texts), tokens)
    numbers = list(range(texts))
    moved_KD = moved_rows(own_KD, donor_KD, text_K, numbers, seed) - own_KD
    random_KD = random_rows(own_KD, donor_KD, text_K, numbers, seed) - own_KD
    lengths_K = (donor_KD - own_KD).norm(dim=1)
    assert torch.allclose(random_KD.norm(dim=1), lengths_K, atol=1e-4)
    assert not torch.allclose(random_KD, donor_KD - own_KD, atol=1e-2)
    for text in range(texts):
        inside = text_K == text
        assert torch.allclose(moved_KD.norm(dim=1)[inside].sort().values, lengths_K[inside].sort().values, atol=1e-4)
    apart_K = (moved_KD - (donor_KD - own_KD)).norm(dim=1)
    assert (apart_K > 1e-3).all()  # none keeps its own
    later_KD = random_rows(own_KD, donor_KD, text_K, [number + 1 for number in numbers], seed) - own_KD
    assert not torch.allclose(random_KD, later_KD, atol=1e-3)


def test_controls_are_those_that_there_can_be():
    task = story_task(3)
    assert control_kinds(Target("mlp", 0), task) == [OTHER, MOVED]
    assert control_kinds(Target("heads", 0, 0), task) == [RANDOM, OTHER, MOVED]
    last = Spot("last", [[-1]], [[-1]])
    alone = story_task(1)
    assert control_kinds(Target("mlp", 0), StoryTask(alone.donor_ids, alone.donor_ids, {}, {}, [last], {})) == []


def test_both_ends_are_checked_and_the_check_can_fail(monkeypatch):
    donor, recipient = planted("llama")
    task, targets = story_task(), parts_of(recipient, COMPONENTS)
    check = check_swaps(donor, recipient, task, targets)
    assert (check.itself, check.whole, check.texts) == (0.0, 0.0, 4)
    assert "with itself changes nothing" in str(check)
    assert "gives the donor exactly (4 texts)" in str(check)
    from lm_trials.probing.patching import swaps as patching

    right = patching.rows_of
    monkeypatch.setattr(patching, "rows_of", lambda found, part, heads: right(found, part, heads) + 1e-4)
    with pytest.raises(RuntimeError, match=r"changes logits by at most .*more than rounding explains"):
        check_swaps(donor, recipient, task, targets)
    monkeypatch.setattr(patching, "rows_of", right)
    monkeypatch.setattr(
        patching, "ModelPart", lambda site, layer: ModelPart("hidden", 0)
    )  # not all of it is the donor's
    with pytest.raises(RuntimeError, match=r"gives the donor within .*more than rounding explains"):
        check_swaps(donor, recipient, task, targets)


def test_texts_without_the_sentence_count_for_nothing():
    task = story_task(10)
    weights = task.weights["story"] * (np.arange(10) < 4)
    task = StoryTask(task.donor_ids, task.donor_ids, {"story": weights}, task.units, task.spots, task.regions)
    scores = {}
    for run, value in ((("", None, RECIPIENT), 0.0), (("", None, DONOR), 1.0), (("all", Target("mlp", 0), SWAP), 0.5)):
        values = np.where(np.arange(10) < 4, value * weights, 1e9)
        scores[run] = {"story": values}
    measured = Measured(scores, task, "story", 0)
    assert measured.n == 4
    assert not measured.halved
    assert measured.share(("all", Target("mlp", 0), SWAP)).estimate == pytest.approx(0.5)


def test_a_figure_draws_what_the_rows_say():
    donor, recipient = planted("llama")
    rows = direction_rows(measured_direction(donor, recipient, story_task(24, model=donor)), 0)
    figure = patching_figure(rows, "share of the gap")
    bars, heads = figure.axes[:2]
    assert bars.get_xlabel() == "block"
    assert bars.get_ylabel() == "share of the gap"
    heights = sorted(patch.get_height() for patch in bars.patches)
    expected = sorted(
        row["estimate"]
        for row in rows
        if (row["quantity"], row["texts"], row["run"]) == ("share of the gap", "all", SWAP)
        and row["component"] not in ("heads", None)
    )
    assert heights == pytest.approx(expected)
    assert heads.images[0].get_array().shape == (2, 4)
    with pytest.raises(ValueError, match="no rows of 'nothing'"):
        patching_figure(rows, "nothing")


def test_a_figure_of_scores_shows_both_models_as_they_are_and_only_controls_that_there_are():
    shared = {"direction": "a into b", "position": "all", "head": None, "quantity": "value", "texts": "all",
              "measure": "Twist score",
              "unit": "share of stories"}  # fmt: skip
    rows = [
        {
            **shared,
            "component": part,
            "block": block,
            "role": role,
            "run": run,
            "estimate": value,
            "lower": 0.0,
            "upper": 0.1,
        }
        for part, block, role, run, value in (
            (None, None, "finding", "recipient", 0.0),
            (None, None, "finding", "donor", 0.4),
            ("mlp", 0, "finding", SWAP, 0.05),
            ("mlp", 0, "control", "untrained donor", 0.0),
        )
    ]
    figure = patching_figure(rows, "value")
    assert figure.axes[0].get_ylim()[1] > 0.4
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"MLP", "recipient, unchanged", "donor, unchanged", "control: untrained donor"}
