"""The verdict of a trial: the result of each registered contrast, and of all together.

A claim is a range of differences: `greater` than a margin, for example.  It holds where the 95 % interval lies within
the range, does not hold where the interval lies outside, and is undecided otherwise.  `equivalent` holds where two
one-sided tests reject at 5 %, which is the 90 % interval within the margin.

Controls come first: a trial whose control shows the effect has no verdict.  Where the claim holds, the reason names
each control that does not exclude an effect of that size.  Several primary contrasts must all hold, which needs no
correction; secondary contrasts are one family and corrected by Holm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate
from lm_trials.trials.outcomes import Outcome, TrialRuns, read_outcome
from lm_trials.trials.paired import LEAST_STORIES, TestedDifference, holm
from lm_trials.trials.trial import Contrast, Trial

HOLDS, AGAINST, UNDECIDED, UNKNOWN = "holds", "does not hold", "undecided", "not computed"
NO_VERDICT, INCOMPLETE = "no verdict", "incomplete"
LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Finding:
    """The result of one contrast.

    Attributes:
        outcome: its values; None where they could not be read, and `problem` says why.
        test: the difference with its 95 % interval; NaN without one.
        p: two-sided, against the end of the claimed range; of `equivalent`, of the two one-sided tests.
        p_holm: of a secondary contrast, corrected over the family; else NaN.
        result: holds, does not hold, undecided, or not computed.
    """

    contrast: Contrast
    outcome: Outcome | None
    test: TestedDifference | None
    p: float
    result: str
    problem: str = ""
    p_holm: float = math.nan


@dataclass(frozen=True)
class Verdict:
    """The verdict of a trial in a word, and the reason in a sentence."""

    word: str
    reason: str


def claimed_range(expect: str, margin: float) -> tuple[float, float]:
    """Return the range of differences, without its ends, that a contrast claims.

    >>> claimed_range("greater", 0.1), claimed_range("not_less", 0.1), claimed_range("equivalent", 0.1)
    ((0.1, inf), (-0.1, inf), (-0.1, 0.1))
    """
    return {
        "greater": (margin, math.inf),
        "less": (-math.inf, -margin),
        "not_less": (-margin, math.inf),
        "not_greater": (-math.inf, margin),
        "equivalent": (-margin, margin),
    }[expect]


def judge(difference: Estimate, p: float, expect: str, margin: float) -> str:
    """Return the result of a claim from its 95 % interval.

    Args:
        p: of the two one-sided tests, for `equivalent`.

    >>> judge(Estimate(0.3, 0.2, 0.4, 50, "nats"), 0.001, "greater", 0.1)
    'holds'
    >>> judge(Estimate(0.3, 0.05, 0.55, 50, "nats"), 0.1, "greater", 0.1)
    'undecided'
    """
    low, high = claimed_range(expect, margin)
    if difference.upper < low or difference.lower > high:
        return AGAINST
    if expect == "equivalent":
        return HOLDS if p < LEVEL else UNDECIDED
    within = (difference.lower > low) if high == math.inf else (difference.upper < high)
    return HOLDS if within else UNDECIDED


def p_value(outcome: Outcome) -> float:
    """Return the p value of a contrast: two-sided against the end of its range; of `equivalent`, the larger one-sided.

    Below 0.05 it agrees with the interval: the end is outside the 95 %, or both ends are outside the 90 % interval.
    """
    low, high = claimed_range(outcome.contrast.expect, outcome.contrast.margin)
    if outcome.contrast.expect != "equivalent":
        return outcome.test(low if high == math.inf else high).p

    def one_sided(end: float, sign: int) -> float:
        test = outcome.test(end)
        return test.p / 2 if sign * (test.difference.estimate - end) > 0 else 1 - test.p / 2

    return max(one_sided(low, 1), one_sided(high, -1))


def find(contrast: Contrast, runs: TrialRuns, seeds: Sequence[int]) -> Finding:
    """Read a contrast's values and judge them."""
    try:
        outcome = read_outcome(contrast, runs, seeds)
    except UsageError as error:
        return Finding(contrast, None, None, math.nan, UNKNOWN, str(error))
    test, p = outcome.test(), p_value(outcome)
    return Finding(contrast, outcome, test, p, judge(test.difference, p, contrast.expect, contrast.margin))


def corrected(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with the secondary ones corrected as one family: decided only if so after the correction."""
    family = [finding for finding in findings if finding.contrast.role == "secondary"]
    by_name = dict(zip((each.contrast.name for each in family), holm([each.p for each in family]), strict=True))
    found = []
    for finding in findings:
        p_holm = by_name.get(finding.contrast.name, math.nan)
        # The p value of `equivalent` is for the claim alone, so nothing corrects its refutation.
        lost = p_holm >= LEVEL and (finding.result == HOLDS or finding.contrast.expect != "equivalent")
        found.append(replace(finding, p_holm=p_holm, result=UNDECIDED if lost and finding.outcome else finding.result))
    return found


def find_all(trial: Trial, runs: TrialRuns) -> list[Finding]:
    """Read and judge all contrasts of a trial, with the secondary ones corrected."""
    return corrected([find(contrast, runs, trial.seeds) for contrast in trial.contrasts])


def verdict(trial: Trial, findings: Sequence[Finding], missing: Sequence[str] = ()) -> Verdict:
    """Return the verdict of a trial.

    Args:
        missing: the names of jobs that are not finished.
    """
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return Verdict(INCOMPLETE, f"{len(missing)} jobs are not finished: {shown}")
    if len(trial.seeds) < 2:
        return Verdict(NO_VERDICT, "with one root seed nothing can be said about the recipe; add root seeds")
    for finding in (each for each in findings if each.contrast.role == "control"):
        if finding.result == UNKNOWN:
            return Verdict(NO_VERDICT, f"the control {finding.problem}")
        if finding.result == HOLDS or _unmeasured_effect(finding):
            return Verdict(NO_VERDICT, f"the control {finding.contrast.name} shows the effect: {_difference(finding)}")
    primary = [each for each in findings if each.contrast.role == "primary"]
    if not primary:
        return Verdict(NO_VERDICT, "the trial has no primary outcome")
    if unknown := next((each for each in primary if each.result == UNKNOWN), None):
        return Verdict(NO_VERDICT, unknown.problem)
    word = next((word for word in (AGAINST, UNDECIDED) if any(each.result == word for each in primary)), HOLDS)
    decisive = [each for each in primary if each.result == word]
    texts = [sentence(each) for each in decisive]
    for control in (each for each in findings if each.contrast.role == "control" and word == HOLDS):
        if not _excludes(control, primary):
            texts.append(
                f"the control {control.contrast.name} does not exclude an effect of this size: {_difference(control)}"
            )
    return Verdict(word, "; ".join(texts))


def _unmeasured_effect(finding: Finding) -> bool:
    """Whether a difference without an interval, such as one equal in all root seeds, lies in the claimed range."""
    assert finding.test is not None
    low, high = claimed_range(finding.contrast.expect, finding.contrast.margin)
    difference = finding.test.difference
    return math.isnan(difference.lower) and math.isnan(difference.upper) and low < difference.estimate < high


def _excludes(control: Finding, primary: Sequence[Finding]) -> bool:
    """Whether a control's interval excludes the smallest primary effect in its unit; True where it has no direction."""
    assert control.test is not None
    found, (low, high) = control.test.difference, claimed_range(control.contrast.expect, control.contrast.margin)
    effects = [each.test.difference for each in primary if each.test and each.contrast.expect in ("greater", "less")]
    size = min((abs(each.estimate) for each in effects if each.unit == found.unit), default=math.inf)
    if math.isinf(size) or (math.isfinite(low) and math.isfinite(high)):
        return True
    return found.upper < size if high == math.inf else found.lower > -size


def excluded_text(control: Finding) -> str:
    """Return which effects a control's 95 % interval excludes, on the side of those that would invalidate the trial."""
    assert control.test is not None
    found, (low, high) = control.test.difference, claimed_range(control.contrast.expect, control.contrast.margin)
    ends = difference_texts(found)[1].strip("[]").split(", ")
    texts = [f"below {ends[0]}"] if high < math.inf and math.isfinite(found.lower) else []
    texts += [f"above {ends[-1]}"] if low > -math.inf and math.isfinite(found.upper) else []
    return " and ".join(texts) or "none"


def sentence(finding: Finding) -> str:
    """Return a finding in words, with its interval, its claim and its root seeds."""
    assert finding.outcome is not None
    contrast, seeds = finding.contrast, len(finding.outcome.seeds)
    ratio = ratio_text(finding.test.difference, contrast.scale) if finding.test and contrast.second else ""
    text = f"{contrast.name} is {_difference(finding)}{ratio} over {seeds} root seeds"
    if finding.outcome.of_stories:
        text += f" and {finding.outcome.n:,} stories"
    text += f"; claimed: {claim_text(contrast)}"
    return f"{text}; {decisive_text(finding.outcome)}" if finding.result == UNDECIDED else text


def ratio_text(found: Estimate, scale: str) -> str:
    """Return a difference of logarithms as the ratio that it is; nothing on other scales.

    >>> ratio_text(Estimate(3.15, 2.78, 3.52, 5, "log2 ratio of updates"), "log2")
    ', which is a ratio of 8.88 [6.87, 11.5],'
    """
    base = {"log2": 2, "log": math.e}.get(scale)
    if base is None or math.isnan(found.lower):
        return ""
    return f", which is a ratio of {base**found.estimate:.3g} [{base**found.lower:.3g}, {base**found.upper:.3g}],"


def decisive_text(outcome: Outcome) -> str:
    """Return how many root seeds would decide a contrast with 80 % power if the difference stays as it is."""
    from lm_trials.trials.power import MOST_SEEDS, paired_power, seeds_needed

    contrast, difference = outcome.contrast, float(outcome.differences_S.mean())
    if outcome.of_stories and outcome.n < LEAST_STORIES:
        return f"evaluate on at least {LEAST_STORIES} stories"
    ends = [end for end in claimed_range(contrast.expect, contrast.margin) if math.isfinite(end)]
    distance, spread = min(abs(difference - end) for end in ends), float(outcome.differences_S.std(ddof=1))
    stories = outcome.over_stories()
    if stories and any(stories.lower < end < stories.upper for end in ends):
        return f"these {outcome.n:,} stories do not decide it for any number of root seeds; evaluate on more stories"
    if any(time.censored or time.early for arm in outcome.times for time in arm) or not distance or not spread:
        return "the number of root seeds that would decide it cannot be computed from these"
    level = 2 * LEVEL if contrast.expect == "equivalent" else LEVEL
    needed = seeds_needed(paired_power, distance / spread, POWER, level)
    shown = f"about {needed:,}" if needed <= MOST_SEEDS else f"more than {MOST_SEEDS:,}"
    return f"{shown} root seeds would decide it if the difference stays the same (power {POWER:.0%})"


def claim_text(contrast: Contrast) -> str:
    """Return a contrast's claim in words.

    >>> claim_text(Contrast("x", "primary", ("a", "b"), None, {}, expect="equivalent", margin=0.5))
    'between -0.5 and 0.5'
    """
    low, high = claimed_range(contrast.expect, contrast.margin)
    if high == math.inf:
        return f"above {low:zg}"
    return f"below {high:zg}" if low == -math.inf else f"between {low:g} and {high:g}"


def difference_texts(found: Estimate) -> tuple[str, str]:
    """Return a difference and its interval as texts, with the digits that the interval supports.

    >>> difference_texts(Estimate(0.19432, 0.1812, 0.2075, 40, "nats"))
    ('+0.194', '[+0.181, +0.207]')
    >>> difference_texts(Estimate(1234.5, math.nan, math.nan, 1, "updates"))
    ('+1.23e+03', 'no interval')
    """
    ends = [abs(found.estimate - end) for end in (found.lower, found.upper) if math.isfinite(end)]
    if not ends or not max(ends):
        return f"{found.estimate:+.3g}", "no interval"
    digits = max(0, 1 - math.floor(math.log10(max(ends))))
    return f"{found.estimate:+z.{digits}f}", f"[{found.lower:+z.{digits}f}, {found.upper:+z.{digits}f}]"


def difference_text(found: Estimate) -> str:
    """Return a difference with its interval and unit.

    >>> difference_text(Estimate(0.5, math.nan, math.nan, 9, "nats per token"))
    '+0.5 nats per token (no interval)'
    """
    difference, interval = difference_texts(found)
    known = math.isfinite(found.lower) or math.isfinite(found.upper)
    return f"{difference} {interval} {found.unit}" if known else f"{difference} {found.unit} ({interval})"


def _difference(finding: Finding) -> str:
    assert finding.test is not None
    return difference_text(finding.test.difference)
