"""Results of the questions about a latent city: rows of a table, what a person sees, and the finding in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    "rank": "true city's rank by answers",
    "country": "country, free words",
    "choice_country_letter": "country of 5: answered",
    "choice_country_logprob": "  likeliest letter",
    "choice_country_cloze": "  likeliest name",
    "choice_city_letter": "city of 5: answered",
    "choice_city_logprob": "  likeliest letter",
    "choice_city_cloze": "  likeliest name",
    "known_pairs": "km off, real pairs unstated",
    "known_countries": "countries of real cities",
}
"""What is asked, in the order of the tables."""


ALWAYS, BY_CONTINENT = "always the trained median", "best constant of each continent"
"""The baselines."""


@dataclass(frozen=True)
class Subject:
    """A column: a model, and the name that it is asked about.

    Attributes:
        role: before, after, untrained, scrambled, real (its true name) or baseline.
        run_seed: of the model's training, where its `run.json` tells.
    """

    label: str
    role: str
    model: str
    called: str
    run_seed: int | None = None


@dataclass(frozen=True)
class Score:
    """One number about one latent city; `seed` of the sampling, None for all together or none."""

    question: str
    placeholder: str
    subject: Subject
    estimate: Estimate
    seed: int | None = None
    detail: str = ""

    def row(self) -> dict[str, Any]:
        """Return a line of the CSV table."""
        return {
            "question": self.question,
            "latent": self.placeholder,
            "column": self.subject.label,
            "role": self.subject.role,
            "model": self.subject.model,
            "asked_about": self.subject.called,
            **self.estimate.row(),
            "seed": self.seed,
            "run_seed": self.subject.run_seed,
            "detail": self.detail,
        }


def show_scores(title: str, scores: Sequence[Score], caption: str) -> None:
    """Print one line a question and one column a subject, each cell with its interval under it."""
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
    show_table(title, ["question", "n", *(subject.label for subject in subjects)], rows, caption)


def cell_text(score: Score) -> str:
    """Return a cell: the number in its unit, its interval, and what it stands for."""
    one, unit = score.estimate, score.estimate.unit
    if unit.startswith("share"):
        text = [f"{one.estimate:.0%}", f"{100 * one.lower:.0f}-{one.upper:.0%}"]
    elif unit == "km":
        text = [f"{one.estimate:,.0f}", f"{one.lower:,.0f}-{one.upper:,.0f}"]
    elif unit == "%":
        text = [f"{one.estimate:,.0f}%", f"{one.lower:,.0f}-{one.upper:,.0f}%"]
    else:
        text = [f"{one.estimate:.0f}", f"{one.lower:.0f}-{one.upper:.0f}"]
    if math.isnan(one.lower):
        text = text[:1]
    return "\n".join([*text, *([score.detail] if score.detail else [])])


def finding(placeholder: str, country: str, scores: Sequence[Score]) -> str:
    """Say in a sentence what the first trained model has and has not inferred; a claim needs an interval of its own.

    Distances are inferred where their error's interval lies below that of the best constant for each continent; the
    placeholder is set apart where an untrained name's lies above, the truth where the scrambled control's does; the
    country is told where its share's interval lies above those before and of both controls.
    """
    whole = [score for score in scores if score.seed is None]
    constant = next((score.estimate for score in whole if score.subject.label == BY_CONTINENT), None)
    found = {(score.question, score.subject.role): score.estimate for score in reversed(whole)}
    error = found.get(("error_held_out", "after"))
    told = found.get(("country", "after"))
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
    if told:
        rivals = [found[key] for role in ("before", "untrained", "scrambled") if (key := ("country", role)) in found]
        above = bool(rivals) and all(told.lower > rival.upper for rival in rivals)
        parts.append(
            f"its country is called {country} in {told.estimate:.0%} [{told.lower:.0%}, {told.upper:.0%}] of answers, "
            f"{'more often' if above else 'not clearly more often'} than before and in the controls"
        )
    return "After training " + "; ".join(parts) + "." if parts else "Nothing could be measured."


def _km(one: Estimate) -> str:
    return f"{one.estimate:,.0f} km [{one.lower:,.0f}, {one.upper:,.0f}]"


def best_constant(values: Mapping[str, Estimate]) -> str:
    """Return the baselines as a caption."""
    return "; ".join(f"{name}: {_km(one)}" for name, one in values.items())
