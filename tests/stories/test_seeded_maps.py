"""A `datasets` map that draws unseeded random numbers is not reproducible; the protocols' draws are.

Its cache is keyed by the function's code, so a second call returns the first one's draws, whatever was seeded since;
without a cache, a row depends on the number of workers.  Every draw of the protocols is a hash of
(seed, purpose, record) instead, and the seed travels inside `fn_kwargs`, where the cache's key sees it.
"""

import random

import pytest
from datasets import Dataset, disable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.protocols.instructions import apply_protocol
from lm_trials.protocols.protocols import parse_protocol
from lm_trials.stories.draws import draw_integers, draw_uniform, record_keys
from lm_trials.stories.records import RECORD_SCHEMA, make_record

STORIES = [f"Tim saw {n} cats. Then he ran home. The {n} cats sat." for n in range(40)]


@pytest.fixture(autouse=True)
def quiet():
    disable_progress_bars()


@pytest.fixture
def saved(tmp_path):
    """Records in a file, as only those are cached on disk."""
    Dataset.from_list([make_record(story, features=["Twist"]) for story in STORIES]).save_to_disk(tmp_path / "records")
    return Dataset.load_from_disk(tmp_path / "records")


def unseeded(row):
    return {"draw": random.random()}


def seeded(batch, protocol):
    return apply_protocol(batch, protocol)


def treated(records, seed, **options):
    """The texts of an adversarial arm, made by a cached batched map."""
    protocol = parse_protocol(adversarial_training="features=Conflict:0.5", seed=seed)
    options = {"batched": True, "remove_columns": list(RECORD_SCHEMA), **options}
    return records.map(seeded, fn_kwargs={"protocol": protocol}, **options)["text"][:]


def test_an_unseeded_map_returns_the_draws_of_the_first_call(saved):
    """Reproduced: when this fails, upstream has changed its cache, and the docstring above needs another reason."""
    random.seed(0)
    first = saved.map(unseeded)["draw"][:]
    random.seed(1)
    assert saved.map(unseeded)["draw"][:] == first
    random.seed(1)
    assert saved.map(unseeded, load_from_cache_file=False)["draw"][:] != first


def test_an_unseeded_map_depends_on_the_number_of_workers(saved):
    draws = []
    for workers in (None, 2):
        random.seed(0)
        draws.append(saved.map(unseeded, load_from_cache_file=False, num_proc=workers)["draw"][:])
    assert draws[0] != draws[1]


def test_a_seeded_map_follows_its_seed_through_the_cache(saved):
    first = treated(saved, seed=0)
    assert treated(saved, seed=1) != first
    assert treated(saved, seed=0) == first


@pytest.mark.parametrize("options", [{"num_proc": 2}, {"batch_size": 1}, {"batch_size": 7}], ids=str)
def test_a_seeded_map_does_not_depend_on_workers_or_batches(saved, options):
    assert treated(saved, seed=0, load_from_cache_file=False, **options) == treated(saved, seed=0)


def test_a_seeded_map_does_not_depend_on_order_shards_or_streaming(saved):
    cached = treated(saved, seed=0)
    assert sorted(treated(saved.shuffle(seed=3), seed=0)) == sorted(cached)
    shards = [treated(saved.shard(3, index, contiguous=True), seed=0) for index in range(3)]
    assert [text for shard in shards for text in shard] == cached
    protocol = parse_protocol(adversarial_training="features=Conflict:0.5", seed=0)
    stream = saved.to_iterable_dataset(num_shards=2).map(
        seeded, batched=True, batch_size=5, fn_kwargs={"protocol": protocol}, remove_columns=list(RECORD_SCHEMA)
    )
    assert [row["text"] for row in stream] == cached


IDS = st.lists(st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}"), min_size=1, max_size=30)


@settings(deadline=None)
@given(IDS, st.integers(0, 2**40), st.permutations(range(5)))
def test_a_draw_belongs_to_its_record_alone(names, seed, places):
    together = dict(zip(names, draw_integers(record_keys(names), seed, "order").tolist(), strict=True))
    for name in names:
        assert draw_integers(record_keys([name]), seed, "order").tolist() == [together[name]]
    turned = [names[place % len(names)] for place in places]
    assert draw_integers(record_keys(turned), seed, "order").tolist() == [together[name] for name in turned]


def test_draws_of_other_seeds_and_purposes_are_unrelated_and_uniform():
    keys = record_keys([f"{n:032x}" for n in range(4000)])  # all first halves are equal: the worst of names
    assert len(set(draw_integers(keys, 0, "order").tolist())) == 1
    keys = record_keys([make_record(f"Story {n}.")["record_id"] for n in range(20_000)])
    draws = [draw_uniform(keys, seed, purpose) for seed in (0, 1) for purpose in ("a", "b")]
    for place, one in enumerate(draws):
        # Standard errors: 0.29 / sqrt(20,000) = 0.002 of the mean, 0.0035 of a share of a half.
        assert one.mean() == pytest.approx(0.5, abs=0.01)
        assert (one < 0.5).mean() == pytest.approx(0.5, abs=0.015)
        for other in draws[:place]:
            assert abs(((one - 0.5) * (other - 0.5)).mean() * 12) < 0.035  # five standard errors of a correlation
