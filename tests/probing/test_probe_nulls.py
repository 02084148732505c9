"""What probes say where there is nothing: each found by a reviewer to be told as something before it was mended."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from lm_trials.files import weights_digest
from lm_trials.probing.embeddings.geometry import LEAST_TOKENS, difference_of, movement
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.patching.swaps import _partners
from lm_trials.probing.subjects import find_subjects
from lm_trials.probing.weights.changes import turning
from lm_trials.probing.weights.edits import Trial
from lm_trials.probing.weights.experiments import lineage_notes
from lm_trials.probing.weights.report import Deletion, undoing

DRAWS = np.random.default_rng(0)


@pytest.mark.parametrize("unchanged", [0, 100_000])
def test_independent_changes_of_a_few_matrices_are_within_chance(unchanged):
    """An adapter changes few of many weights; counting them all made 72 % of independent changes seem related."""
    torch.manual_seed(0)
    still = torch.zeros(unchanged)
    pairs = [turning([still, torch.randn(32, 32)], [still, torch.randn(32, 32)]) for _ in range(300)]
    beyond = np.mean([abs(pair.cosine) > pair.by_chance for pair in pairs])
    assert 0.02 < beyond < 0.09
    counted_alike = np.mean([abs(pair.cosine) > 1.96 / pair.n**0.5 for pair in pairs])
    assert (counted_alike > 0.5) == (unchanged > 0)


def of_losses(nats):
    return np.stack([nats, np.full(len(nats), 100.0)], axis=1)


def pruned(generator, method, role, base, rise, effects):
    """A trial whose draws undo some share of the deletion each, the same for all stories but for a little noise."""
    draws = [
        {"set": of_losses(base + rise * (1 - effect + generator.normal(0, 0.01, len(base))))} for effect in effects
    ]
    mean = {"set": np.mean([draw["set"] for draw in draws], axis=0)}
    return Trial(method, role, 4, mean, None, tuple(draws) if len(draws) > 1 else ())


def verdicts(seed, spread, effect=None):
    """Whether one pruning is told to undo more or less than units at random, with draws that differ by `spread`."""
    generator = np.random.default_rng(seed)
    base, rise = generator.normal(100, 10, 40), np.full(40, 10.0)
    own = generator.normal(0, spread) if effect is None else effect
    ranked = pruned(generator, "ranked", "finding", base, rise, [own])
    drawn = pruned(generator, "at random", "control", base, rise, generator.normal(0, spread, 5))
    deletion = Deletion(of_losses(base), of_losses(base + rise), seed=0)
    both = []
    for control in (drawn, Trial("at random", "control", 4, drawn.draws[0])):
        sentence, _ = undoing(deletion, [ranked, control], "set", ("ranked", "at random"), "pruning {level} neurons")
        both.append("not significantly different" not in sentence)
    return both


def test_a_ranking_that_knows_nothing_is_seldom_told_to_differ_from_random_units():
    told = np.array([verdicts(seed, spread=0.1) for seed in range(40)])
    assert told[:, 0].mean() <= 0.15
    assert told[:, 1].mean() > 0.5  # one draw, whose spread is not known, is told to differ as a rule


def test_a_ranking_that_knows_something_is_told():
    assert all(verdicts(seed, spread=0.1, effect=0.8)[0] for seed in range(10))


def test_a_level_is_told_on_stories_that_did_not_choose_it():
    """Forty levels of pure noise: the best of them undoes a good deal where it was chosen, and nothing elsewhere."""
    generator = np.random.default_rng(1)
    base = generator.normal(100, 1, 40)
    deletion = Deletion(of_losses(base), of_losses(base + 10), seed=0)
    trials = [
        Trial("ranked", "finding", level, {"set": of_losses(base + 10 + generator.normal(0, 30, 40))})
        for level in range(1, 41)
    ]
    sentence, _ = undoing(deletion, trials, "set", ("ranked",), "pruning {level} neurons")
    assert "no significant part of it is undone" in sentence
    assert "20 held-out stories" in sentence
    best = max((deletion.undone(trial.sums["set"]) for trial in trials), key=lambda share: share.estimate)
    assert best.lower > 0  # chosen and told on the same stories it would be a finding


def test_a_row_of_zeros_has_no_direction_and_so_no_distance():
    before = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    after = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert np.isnan(movement(before, after)["cosine_distance"]).tolist() == [True, False, True]
    assert movement(before, after)["cosine_distance"][1] == 1


@pytest.mark.parametrize("others", [1, LEAST_TOKENS - 1, LEAST_TOKENS])
def test_a_group_of_a_few_tokens_gives_a_difference_no_interval(others):
    values = np.concatenate([DRAWS.normal(0.5, 0.1, 500), DRAWS.normal(0.3, 0.1, others)])
    found = difference_of(values, np.arange(500 + others) < 500, "cosine distance", seed=0)
    assert found.n == others
    assert np.isnan(found.lower) == (others < LEAST_TOKENS)
    assert found.estimate == pytest.approx(values[:500].mean() - values[500:].mean())


def test_another_text_is_never_a_copy():
    texts = [np.array(ids) for ids in ([1, 2], [1, 2], [3, 4], [1, 2])]
    assert _partners(texts, [0, 1, 2, 3]) == {0: 2, 1: 2, 2: 3, 3: 2}
    assert _partners(texts[:2], [0, 1]) == {0: 0, 1: 1}  # nothing else is there; the control is then left out


def test_models_that_are_no_training_of_one_another_are_told(tmp_path, capsys):
    """A base that the second model was not trained from makes of two strangers a fine-tuning."""
    folders = {}
    for seed, name in enumerate(("base", "stranger")):
        folders[name] = tmp_path / name
        tiny_model("llama", vocab_size=330, seed=seed).save_pretrained(folders[name])
        tiny_tokenizer().save_pretrained(folders[name])
    begun = {"name_or_path": "base", "weights_sha256": weights_digest(folders["base"])}
    shutil.copytree(folders["stranger"], tmp_path / "tuned")
    (tmp_path / "tuned" / "run.json").write_text(json.dumps({"outcome": {"initial_model": begun}, "replicate": {}}))
    pairs = {
        name: find_subjects(SubjectArguments([str(folder), str(tmp_path / "tuned")]))
        for name, folder in folders.items()
    }
    assert lineage_notes(pairs["base"]) == []
    assert "note" not in capsys.readouterr().err
    assert "tuned was not trained from stranger" in lineage_notes(pairs["stranger"])[0]
    assert "note: tuned was not trained" in capsys.readouterr().err
