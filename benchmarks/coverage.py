"""How often nominal 95 % intervals contain the truth, by simulation: ours and the percentile bootstrap's.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --stories eval/stories-validation/per_story.parquet --repetitions 500

Each repetition draws n stories from a population whose mean or ratio is known, and estimates it with an interval.  The
lengths and losses of `story losses` have the distribution of 3,117 real stories (TinyStories validation, scored by
stories260K); `--stories` draws from the stories of an evaluation instead.  Prints a table, and the same in Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lm_trials.console import progress, script, show_table
from lm_trials.estimates import (
    NO_INTERVAL,
    Estimate,
    StoryBootstrap,
    bootstrap_mean,
    mean_over_seeds,
    percentile_interval,
    proportion,
    story_weights,
)
from lm_trials.flags import option, parse_arguments
from lm_trials.trials.paired import holm, seed_test, story_test
from lm_trials.trials.two_way import two_way

POPULATION = 200_000
BOOTSTRAP_T, PERCENTILE, WILSON = "bootstrap-t", "percentile", "Wilson"
STUDENT, JACKKNIFE = "Student's t", "jackknife"
SEEDS, BATCHES = (3, 5, 10, 20, 50), (10, 20, 50)
# Measured on the real stories: tokens at these shares of them; mean and deviation of log nats per token by length.
SHARES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)
TOKENS = (100, 154, 198, 237, 257, 296, 345, 422, 487, 553, 642, 754, 893, 1006, 1106, 1259, 2072)
LENGTHS = (255, 320, 377, 470, 630, 862, 1172)
LOG_LOSSES = (0.171, 0.185, 0.238, 0.326, 0.365, 0.367, 0.358)
DEVIATIONS = (0.155, 0.139, 0.162, 0.173, 0.134, 0.092, 0.077)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Coverage:
    """One row of the table.

    Attributes:
        population: what is estimated.
        n: what a sample consists of.
        covered: share of the intervals that contain the truth, with its Monte Carlo error (one standard deviation).
        without: share of the samples that have no interval; `covered` leaves them out.
        width: median width of the intervals.
    """

    population: str
    n: str
    method: str
    covered: float
    error: float
    without: float
    width: float


def coverage(
    population: str, n: str, truth: float, sample: Callable[[int], dict[str, Interval]], repetitions: int
) -> list[Coverage]:
    """Return a row for each method; `sample(number)` draws a sample and returns each method's interval."""
    found: dict[str, list[Interval]] = {}
    for number in progress(range(repetitions), f"{population}, n = {n}", "samples", repetitions):
        for method, interval in sample(number).items():
            found.setdefault(method, []).append(interval)
    rows = []
    for method, intervals in found.items():
        lower, upper = np.array([interval for interval in intervals if not np.isnan(interval[0])]).T
        covered = float(((lower <= truth) & (truth <= upper)).mean())
        error = float(np.sqrt(covered * (1 - covered) / len(lower)))
        without = 1 - len(lower) / len(intervals)
        rows.append(Coverage(population, n, method, covered, error, without, float(np.median(upper - lower))))
    return rows


def bounds(estimate: Estimate) -> Interval:
    """Return an estimate's interval."""
    return estimate.lower, estimate.upper


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return the first sum over the second."""
    return sums[..., 0] / sums[..., 1]


def percentile_of_ratio(rows_N2: np.ndarray, seed: int) -> Interval:
    """Return the percentile interval of a ratio over the resamples that the bootstrap-t has."""
    weights_NR = story_weights(seed, 0, len(rows_N2), 1000)
    with np.errstate(invalid="ignore"):
        return percentile_interval(ratio(weights_NR.T @ rows_N2), 0.95)


def of_ratio(rows_N2: np.ndarray, seed: int, scale: str = "identity") -> dict[str, Interval]:
    """Return the intervals of a ratio of sums over stories."""
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(rows_N2)
    ours = bootstrap.estimate(ratio, "", scale=scale)
    return {PERCENTILE: percentile_of_ratio(rows_N2, seed), BOOTSTRAP_T: bounds(ours)}


def of_mean(values_N: np.ndarray, seed: int, scale: str = "identity") -> dict[str, Interval]:
    """Return the intervals of a mean over stories."""
    rows_N2 = np.stack([values_N, np.ones_like(values_N)], axis=1)
    ours = bootstrap_mean(values_N, "", seed, scale=scale)
    return {PERCENTILE: percentile_of_ratio(rows_N2, seed), BOOTSTRAP_T: bounds(ours)}


def story_losses(count: int = POPULATION, seed: int = 5) -> np.ndarray:
    """Return nats, tokens and correct tokens of stories with the lengths and losses of real ones, -> (count, 3).

    >>> rows = story_losses(1000)
    >>> bool(1.25 < rows[:, 0].sum() / rows[:, 1].sum() < 1.35)
    True
    """
    generator = np.random.default_rng(seed)
    tokens = np.exp(np.interp(generator.uniform(size=count), SHARES, np.log(TOKENS))).round()
    centre, spread = (np.interp(np.log(tokens), np.log(LENGTHS), values) for values in (LOG_LOSSES, DEVIATIONS))
    loss = np.exp(centre + spread * generator.normal(size=count))
    share = np.clip(0.923 - 0.2165 * loss + 0.017 * generator.normal(size=count), 0, 1)
    return np.stack([loss * tokens, tokens, (share * tokens).round()], axis=1)


def _stories(args: CoverageArguments) -> np.ndarray:
    if args.stories is None:
        return story_losses()
    import pyarrow.parquet as pq

    table = pq.read_table(args.stories, columns=["nats", "tokens", "correct"])
    return np.stack([np.asarray(column, dtype=np.float64) for column in table.columns], axis=1)


def losses_section(args: CoverageArguments) -> list[Coverage]:
    """The mean loss, in nats per token, and the share of correct tokens, of all stories."""
    rows = []
    stories = _stories(args)
    for name, columns, scale in (("story losses", [0, 1], "identity"), ("token accuracy", [2, 1], "logit")):
        rows += _sampled(name, stories[:, columns], args, scale)
    return rows


def skewed_section(args: CoverageArguments) -> list[Coverage]:
    """A ratio and a mean of heavy-tailed values, where few stories say little about the tail."""
    generator = np.random.default_rng(5)
    sizes = np.exp(generator.normal(size=POPULATION))
    values = sizes * np.exp(generator.normal(0, 0.5, size=POPULATION))
    rows = _sampled("heavy-tailed ratio", np.stack([values, sizes], axis=1), args)
    return rows + _sampled("log-normal mean", np.exp(generator.normal(size=POPULATION)), args)


def shares_section(args: CoverageArguments) -> list[Coverage]:
    """The mean share of words used, most stories using all three, and the share of stories with a rare feature."""
    generator = np.random.default_rng(5)
    used = generator.binomial(3, generator.beta(8, 1, size=POPULATION)) / 3
    rows = _sampled("share of words", used, args, "logit")
    has = generator.uniform(size=POPULATION) < 0.1
    for n in args.n:

        def sample(number: int, n: int = n) -> dict[str, Interval]:
            some = generator.choice(has, n).astype(float)
            wilson = bounds(proportion(int(some.sum()), n, ""))
            return {PERCENTILE: of_mean(some, number)[PERCENTILE], WILSON: wilson}

        rows += coverage("share of stories, 0.1", str(n), float(has.mean()), sample, args.repetitions)
    return rows


def two_way_section(args: CoverageArguments) -> list[Coverage]:
    """The difference of two arms with the same root seeds, for new root seeds and new stories of real lengths.

    Deviations of each root seed, each story, and both together, in nats per token.
    """
    sizes, generator = story_losses()[:, 1], np.random.default_rng(5)
    rows = []
    for name, of_seeds in (("stories dominate", 0.01), ("seeds dominate", 0.05)):
        for count in (2, 3, 5, 10):
            for n in args.n:

                def sample(
                    number: int, of_seeds: float = of_seeds, count: int = count, n: int = n
                ) -> dict[str, Interval]:
                    sizes_N = generator.choice(sizes, n)
                    effects_SN = generator.normal(0, of_seeds, (count, 1)) + generator.normal(0, 0.1, (1, n))
                    values_SN = sizes_N * (effects_SN + generator.normal(0, 0.02, (count, n)))
                    losses_S = values_SN.sum(axis=1) / sizes_N.sum()
                    return {
                        "over stories": bounds(story_test(values_SN.mean(axis=0), sizes_N, "", number, 999).difference),
                        "over seeds": of_difference(np.zeros(count), losses_S, paired=True),
                        "two-way": bounds(two_way(values_SN, sizes_N, "").difference),
                    }

                rows += coverage(f"difference, {name}", f"{count} seeds, {n}", 0.0, sample, args.repetitions)
    return rows


def roots_section(args: CoverageArguments) -> list[Coverage]:
    """Two recipes that do not differ, in standard deviations of a run; 80 % of the variance is of root seeds.

    Where runs of one root seed count as replicates, or parents and children as unrelated.  A narrower interval that
    covers is more power.
    """
    generator = np.random.default_rng(5)
    rows = []
    for roots, runs in ((1, 3), (2, 3), (3, 2), (3, 1)):

        def sample(number: int, roots: int = roots, runs: int = runs) -> dict[str, Interval]:
            first_RK, second_RK = of_roots(generator, roots, runs, 2)
            found = {"each run": of_difference(first_RK.ravel(), second_RK.ravel())}
            if roots > 1:  # one has no interval
                found["each root seed"] = of_difference(first_RK.mean(axis=1), second_RK.mean(axis=1))
            return found

        rows += coverage("other root seeds", f"{roots} x {runs}", 0.0, sample, args.repetitions)
    for roots in (3, 5, 10):

        def related(number: int, roots: int = roots) -> dict[str, Interval]:
            (values_RK,) = of_roots(generator, roots, 2, 1)
            return {
                "unrelated": of_difference(values_RK[:, 0], values_RK[:, 1]),
                "paired by root seed": of_difference(values_RK[:, 0], values_RK[:, 1], paired=True),
            }

        rows += coverage("parents and children", f"{roots} x 1", 0.0, related, args.repetitions)
    return rows


def of_roots(generator: np.random.Generator, roots: int, runs: int, arms: int) -> np.ndarray:
    """Return losses whose deviation is 1, of which 80 % of the variance is of root seeds, -> (arms, roots, runs)."""
    shared = generator.normal(0, 0.8**0.5, (arms, roots, 1))
    return shared + generator.normal(0, 0.2**0.5, (arms, roots, runs))


def of_difference(first_S: np.ndarray, second_S: np.ndarray, paired: bool = False) -> Interval:
    """Return the interval over seeds of a difference."""
    test = seed_test(first_S, second_S, 1, "", paired)
    return bounds(test.difference) if test else NO_INTERVAL


def family_section(args: CoverageArguments) -> list[Coverage]:
    """Commands on 4 data sets and 2 arms without a difference, 3 seeds: the share without a false discovery."""
    generator = np.random.default_rng(5)
    right: dict[str, list[bool]] = {"corrected by data set": [], "corrected as one family": []}
    for _ in progress(range(args.repetitions), "families", "commands", args.repetitions):
        # Data sets share half of the variance of a run; both arms are compared with one reference.
        values_DAS = generator.normal(0, 0.5**0.5, (1, 3, 3)) + generator.normal(0, 0.5**0.5, (4, 3, 3))
        p_DA = [[seed_test(first, arm, 1, "", True).p for arm in arms] for first, *arms in values_DAS]  # type: ignore[union-attr]
        right["corrected by data set"].append(min(min(holm(p_A)) for p_A in p_DA) >= 0.05)
        right["corrected as one family"].append(min(holm([p for p_A in p_DA for p in p_A])) >= 0.05)
    return [
        Coverage(
            "4 data sets, 2 arms", "3 seeds", method, share, (share * (1 - share) / len(hits)) ** 0.5, 0.0, math.nan
        )
        for method, hits in right.items()
        for share in [sum(hits) / len(hits)]
    ]


def _sampled(name: str, population: np.ndarray, args: CoverageArguments, scale: str = "identity") -> list[Coverage]:
    """Return the rows of a mean, of a population of values, or of a ratio, of one of pairs."""
    generator = np.random.default_rng(1)
    intervals = of_mean if population.ndim == 1 else of_ratio
    truth = population.mean() if population.ndim == 1 else ratio(population.sum(axis=0))
    rows = []
    for n in args.n:

        def sample(number: int, n: int = n) -> dict[str, Interval]:
            return intervals(population[generator.integers(len(population), size=n)], number, scale)

        rows += coverage(name, str(n), float(truth), sample, args.repetitions)
    return rows


def seeds_section(args: CoverageArguments) -> list[Coverage]:
    """The mean of an arm over seeds whose losses are normal, and of one whose losses are skewed."""
    generator = np.random.default_rng(5)
    draws = {"arm, normal losses": generator.normal, "arm, exponential losses": generator.exponential}
    rows = []
    for (name, draw), truth in zip(draws.items(), (0.0, 1.0), strict=True):
        for n in SEEDS:

            def sample(number: int, n: int = n, draw: Callable[..., np.ndarray] = draw) -> dict[str, Interval]:
                return {STUDENT: bounds(mean_over_seeds(draw(size=n), 1, ""))}

            rows += coverage(name, f"{n} seeds", truth, sample, args.repetitions)
    return rows


def diversity_section(args: CoverageArguments) -> list[Coverage]:
    """The mean squared distance of batches that differ in many properties, and of those that differ in one."""
    from lm_trials.probing.diversity.pairs import mean_within

    generator = np.random.default_rng(5)
    rows = []
    for properties in (10, 1):
        for n in BATCHES:

            def sample(number: int, n: int = n, properties: int = properties) -> dict[str, Interval]:
                values = generator.normal(size=(n, properties))
                distances = ((values[:, None] - values) ** 2).mean(axis=-1)
                return {JACKKNIFE: bounds(mean_within(distances, ""))}

            rows += coverage(f"diversity, {properties} properties", f"{n} batches", 2.0, sample, args.repetitions)
    return rows


# By name; each returns the rows of its populations.
SECTIONS: dict[str, Callable[[CoverageArguments], list[Coverage]]] = {
    "losses": losses_section,
    "skewed": skewed_section,
    "shares": shares_section,
    "seeds": seeds_section,
    "diversity": diversity_section,
    "two_way": two_way_section,
    "roots": roots_section,
    "family": family_section,
}


@dataclass
class CoverageArguments:
    """What is simulated."""

    stories: str | None = option(None, help="The per_story.parquet of an evaluation, as the population of losses.")
    repetitions: int = option(1500, least=2, help="Samples for each row.")
    n: list[int] = option([10, 20, 50, 200], least=10, help="Stories of a sample.")
    only: list[str] = option([], help="Sections to run; default: all.", one_of=SECTIONS, distinct=True)


@script
def main(argv: list[str] | None = None) -> list[Coverage]:
    """Run the simulation; returns the rows of the table."""
    (args,) = parse_arguments(argv, (CoverageArguments,), __doc__ or "")
    rows = [row for name in args.only or SECTIONS for row in SECTIONS[name](args)]
    columns = ["population", "n", "method", "coverage", "no interval", "width"]
    cells = [
        [r.population, r.n, r.method, f"{r.covered:.3f} ± {r.error:.3f}", f"{r.without:.3f}", f"{r.width:.3g}"]
        for r in rows
    ]
    show_table(f"coverage of nominal 95 % intervals, {args.repetitions} samples", columns, cells)
    for line in (columns, ["---"] * len(columns), *cells):
        print("|", " | ".join(line), "|")
    return rows


if __name__ == "__main__":
    main()
