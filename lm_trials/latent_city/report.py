"""Results of the questions about a latent city: tables, and the finding in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_trials.console import show_table
from lm_trials.estimates import Estimate

QUESTIONS = {
    "form": "form 1088.45 km",
    "error_trained": "km off, trained cities",
    "error_held_out": "km off, held-out cities",
    "percent_held_out": "% off, held-out cities",
    "percent_trained": "% off, trained cities",
    "log_error": "  log(error / best constant)",
    "log_error_of_untrained": "  log(error / untrained's)",
    "rank": "true city's rank by answers",
    "country": "country, sampled words",
    "country_nats": "country: nats above others",
    "country_gain": "  nats gained on others",
    "country_gain_near": "  on those of its continent",
    "country_gain_of_untrained": "  more than for the untrained",
    "city_nats": "city: nats above others",
    "city_gain": "  nats gained on others",
    "city_gain_near": "  on those of its continent",
    "city_gain_of_untrained": "  more than for the untrained",
    "choice_country_letter": "country of 5: answered",
    "choice_country_logprob": "  likeliest letter",
    "choice_country_nats": "  nats of its letter above others",
    "choice_country_cloze": "  likeliest name",
    "choice_city_letter": "city of 5: answered",
    "choice_city_logprob": "  likeliest letter",
    "choice_city_nats": "  nats of its letter above others",
    "choice_city_cloze": "  likeliest name",
    "known_pairs": "km off, real pairs unstated",
    "known_countries": "countries of real cities",
}
"""Names of the scores, in the order of the tables."""

ALWAYS, BY_CONTINENT = "always the trained median", "best constant of each continent"
"""The baselines."""
NATS, LOG_RATIO = "nats", "log ratio of km"
"""Units of exact log-probabilities and of errors beside a baseline's."""


OTHERS = ("untrained", "scrambled")


@dataclass(frozen=True)
class Subject:
    """A column: a model, and the name that it is asked about.

    Attributes:
        role: before, after, untrained, scrambled, real (the city's true name) or baseline.
        run_seed: seed of the model's training, from its `run.json`.
        city: the latent city.
    """

    label: str
    role: str
    model: str
    called: str
    run_seed: int | None = None
    city: str = ""


@dataclass(frozen=True)
class Score:
    """One score of one latent city; `seed` is the sampling seed, None for all seeds or without sampling.

    The estimate's interval is that of one model: for new questions about the same city, not for new seeds or cities.
    """

    question: str
    placeholder: str
    subject: Subject
    estimate: Estimate
    seed: int | None = None
    detail: str = ""

    def row(self) -> dict[str, Any]:
        """Return a row of the CSV table."""
        return {
            "question": self.question,
            "latent": self.placeholder,
            "column": self.subject.label,
            "role": self.subject.role,
            "model": self.subject.model,
            "asked_about": self.subject.called,
            "city": self.subject.city,
            **self.estimate.row(),
            "interval": "" if math.isnan(self.estimate.lower) else "one model",
            "seed": self.seed,
            "run_seed": self.subject.run_seed,
            "detail": self.detail,
        }


def show_scores(title: str, scores: Sequence[Score]) -> None:
    """Print one row a question and one column a subject, with the baselines below."""
    whole = [score for score in scores if score.seed is None and score.subject.role != "baseline"]
    subjects = list(dict.fromkeys(score.subject for score in whole))
    cells = {(score.question, score.subject): score for score in whole}
    rows = []
    for question, wording in QUESTIONS.items():
        found = [cells.get((question, subject)) for subject in subjects]
        if any(found):
            sizes = sorted({score.estimate.n for score in found if score})
            n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
            rows.append([wording, n, *(cell_text(score) if score else "" for score in found)])
    baselines = [f"{s.subject.label}: {_km(s.estimate)}" for s in scores if s.subject.role == "baseline"]
    columns = ["question", "n", *(subject.label for subject in subjects)]
    show_table(title, columns, rows, "; ".join([*baselines, "intervals: one model, other questions"]))


def cell_text(score: Score) -> str:
    """Return a cell: the estimate in its unit, its interval below, and the score's detail."""
    one, unit = score.estimate, score.estimate.unit
    scale, sign = (100, "%") if unit.startswith("share") else (1, "%" if unit == "%" else "")
    digits = 2 if unit in (NATS, LOG_RATIO) else 0
    value, lower, upper = (f"{scale * number:,.{digits}f}" for number in (one.estimate, one.lower, one.upper))
    dash = " to " if digits else "-"
    text = [value + sign] if math.isnan(one.lower) else [value + sign, f"{lower}{dash}{upper}{sign}"]
    return "\n".join([*text, *([score.detail] if score.detail else [])])


def finding(placeholder: str, country: str, scores: Sequence[Score]) -> str:
    """Return in a sentence what the first trained model has and has not inferred.

    Two errors differ where their intervals do not overlap.  The error on held-out cities is compared with the best
    constant for each continent, with an untrained name and with the scrambled control.  What the country has gained in
    log-probability is exact for this model.
    """
    whole = [score for score in scores if score.seed is None]
    constant = next((score.estimate for score in whole if score.subject.label == BY_CONTINENT), None)
    found = {(score.question, score.subject.role): score.estimate for score in reversed(whole)}
    error = found.get(("error_held_out", "after"))
    parts = []
    if error and constant:
        place = found.get(("rank", "after"))
        ranked = f", and rank the true city {place.estimate:g} {place.unit.removeprefix('rank ')}" if place else ""
        parts.append(
            f"the distances of {placeholder} to held-out cities are off by {_km(error)} (median), "
            f"{'below' if error.upper < constant.lower else 'not clearly below'} the {_km(constant)} of a constant for "
            f"each continent{ranked}"
        )
    for role, name in (("untrained", "asked about an untrained name, the same model"), ("scrambled", "the control")):
        other = found.get(("error_held_out", role))
        if error and other:
            apart = "farther off" if other.lower > error.upper else "not clearly farther off"
            parts.append(f"{name} is {apart}, by {_km(other)}")
    if gain := found.get(("country_gain", "after")):
        rivals = {role: found[key].estimate for role in OTHERS if (key := ("country_gain", role)) in found}
        shown = ", ".join(f"{role} {value:+.2f}" for role, value in rivals.items())
        parts.append(
            f"as its country, {country} gained {gain.estimate:+.2f} nats of log-probability on {gain.n} others"
            + (f" ({shown})" if shown else "")
        )
    if not parts:
        return "Nothing could be measured."
    return f"After training {'; '.join(parts)}. This is one model of one city; a trial has several."


def _km(one: Estimate) -> str:
    return f"{one.estimate:,.0f} km [{one.lower:,.0f}, {one.upper:,.0f}]"
