"""Asking models about a latent city, and the scores of their answers beside baselines.

Shape suffixes: N = questions, M = candidate cities, R = resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lm_trials.console import UsageError, note, progress
from lm_trials.data.datasets import open_dataset
from lm_trials.estimates import (
    LEAST_STORIES,
    NO_INTERVAL,
    RESAMPLES,
    Estimate,
    bootstrap_mean,
    percentile_interval,
    proportion,
)
from lm_trials.evaluation.losses import IGNORED, Window, quiet, token_losses
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller, open_storyteller
from lm_trials.latent_city.atlas import LETTERS
from lm_trials.latent_city.cities import (
    HALF_CIRCUMFERENCE_KM,
    City,
    distance_km,
    distances_km,
    folded,
    known_places,
    places,
)
from lm_trials.latent_city.flags import LatentCityArguments
from lm_trials.latent_city.questions import (
    COUNTRY_QUESTION,
    OPEN_CITY_QUESTION,
    CountryReader,
    LatentCity,
    distance_question,
    draw_choices,
    error_km,
    is_exact,
    off_km,
    read_choice,
    read_km,
)
from lm_trials.latent_city.report import ALWAYS, BY_CONTINENT, LOG_RATIO, NATS, Score, Subject
from lm_trials.models.reference import read_run, resolve_model
from lm_trials.pairs.layouts import NO_OPTIONS, Example, chat_examples, instruct_examples
from lm_trials.shared_flags import read_seeds
from lm_trials.tokens.tokenizers import batch_encoder

Item = TypeVar("Item")
EXAMPLE_KM = "1088.45 km"
SHARE, SETS = "share of answers", "share of sets of options"
OPTIONS_AT_ONCE = 64  # a batch of answers of a few tokens each
LEAST_KM = 0.01  # the last digit of an answer: no error is known better


def median_of(values: Sequence[float], unit: str) -> Estimate:
    """Estimate a median over questions, with the interval between two of the values.

    >>> print(median_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 100.0], "km"))
    5.500 [2.000, 9.000] km (n=10)
    """
    from scipy import stats  # takes most of a second to import

    # A median has no standard error to divide by.  How many values are below the true one is binomial, which gives at
    # least 95 % for any distribution.
    limits = (
        stats.quantile_test(values, p=0.5).confidence_interval(0.95) if len(values) >= LEAST_STORIES else NO_INTERVAL
    )
    return _estimate(float(np.median(values)), limits, len(values), unit)


def _estimate(value: float, limits: tuple[float, float], n: int, unit: str) -> Estimate:
    lower, upper = map(float, limits)
    return Estimate(value, *((lower, upper) if n >= LEAST_STORIES and lower < upper else NO_INTERVAL), n, unit)


def baseline_errors(latent: LatentCity, by_continent: bool) -> list[float]:
    """Return the errors in km of a constant prediction for the held-out cities: the median of the trained distances.

    With `by_continent` the constant is the median over the trained cities of the same continent, where there are any:
    the best prediction from continents alone.
    """
    by_place: dict[str, list[float]] = {}
    for city in latent.trained:
        by_place.setdefault(city.continent, []).append(distance_km(city, latent.city))
    overall = float(np.median([km for found in by_place.values() for km in found]))
    # The best constant of each continent has an error of 898 km: a model that learned only the continent reaches it,
    # so it stands beside every error.
    medians = {continent: float(np.median(found)) for continent, found in by_place.items()}
    predicted = [medians.get(city.continent, overall) if by_continent else overall for city in latent.held_out]
    return [abs(km - distance_km(city, latent.city)) for km, city in zip(predicted, latent.held_out, strict=True)]


def log_error(errors: Sequence[float], others: Sequence[float]) -> Estimate:
    """Estimate log(median error / median of other errors on the same cities), with percentiles over resampled cities.

    >>> round(log_error([1.0, 2.0, 3.0], [20.0, 10.0, 30.0]).estimate, 4)  # log(2 / 20)
    -2.3026
    """

    def ratio(drawn: np.ndarray) -> np.ndarray:
        own, other = (np.maximum(np.median(np.array(km)[drawn], axis=-1), LEAST_KM) for km in (errors, others))
        return np.log(own) - np.log(other)

    drawn_RN = np.random.Generator(np.random.Philox(0)).integers(len(errors), size=(RESAMPLES, len(errors)))
    limits = percentile_interval(ratio(drawn_RN), 0.95)
    return _estimate(float(ratio(np.arange(len(errors)))), limits, len(errors), LOG_RATIO)


def implied_place(latent: LatentCity, asked: Sequence[City], answers: Sequence[str]) -> tuple[City, Estimate]:
    """Return the candidate whose distances to the cities asked about fit the answers best, and the true city's rank.

    The fit is the mean absolute error; an answer without a number has the same for all candidates.  Rank 1 is the best
    fit, chance is the middle rank.
    """
    answers_N = np.array([np.nan if (value := read_km(answer)) is None else value for answer in answers])
    true_NM = distances_km(places(asked), places(latent.capitals))
    errors_NM = np.minimum(np.abs(true_NM - answers_N[:, None]), HALF_CIRCUMFERENCE_KM)
    # An answer without a number is the largest possible error and not missing: a model must not gain by not
    # answering.
    errors_NM = np.where(np.isnan(errors_NM), HALF_CIRCUMFERENCE_KM, errors_NM)
    true_place = latent.capitals.index(latent.city)
    mean_M = errors_NM.mean(axis=0)
    # The percentiles of the resampled ranks: a rank moves in whole steps and has no standard error either.
    drawn_RN = np.random.Generator(np.random.Philox(0)).integers(len(asked), size=(RESAMPLES, len(asked)))
    limits = percentile_interval(_rank(errors_NM[drawn_RN].mean(axis=1), true_place), 0.95)
    rank = _estimate(float(_rank(mean_M, true_place)), limits, len(asked), f"rank of {len(latent.capitals)}")
    return latent.capitals[int(mean_M.argmin())], rank


def _rank(errors: np.ndarray, place: int) -> np.ndarray:
    """Return the rank of a candidate in (..., M) errors; equal candidates share the middle of their ranks."""
    own = errors[..., place : place + 1]
    return 1.0 + (errors < own).sum(axis=-1) + ((errors == own).sum(axis=-1) - 1) / 2


def answer_nats(storyteller: Storyteller, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Return the (N,) log-probabilities, in nats, of whole answers in the model's prompt layout.

    The end of an answer (EOS, the end of a turn) counts, so that `Niger` is not a prefix of `Nigeria`; in the
    completion layout answers have no end.
    """
    tokenizer = storyteller.tokenizer
    if storyteller.mode == "instruct":
        # BOS, the first token of the completion, counts too; it is the same for all options.
        examples = instruct_examples(tokenizer, questions, answers)
    elif storyteller.mode == "chat":
        turns = [
            ([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], 1, NO_OPTIONS)
            for question, answer in zip(questions, answers, strict=True)
        ]
        examples = chat_examples(tokenizer, turns)
    else:
        prompts = storyteller.prompts(questions)
        opening = len(prompts[0]) - len(batch_encoder(tokenizer)([questions[0]])[0])
        whole = batch_encoder(tokenizer)([f"{q} {a}" for q, a in zip(questions, answers, strict=True)])
        examples = []
        for prompt, ids in zip(prompts, whole, strict=True):
            shared = len(prompt) - opening
            examples.append(Example([*prompt[:opening], *ids], [0] * (opening + shared) + [1] * (len(ids) - shared)))
    windows = []
    for number, (token_ids, mask) in enumerate(examples):
        targets = np.where(np.array(mask[1:]) == 1, token_ids[1:], IGNORED)
        windows.append(Window(np.array(token_ids[:-1]), targets, np.full(len(targets), number)))
    nats: list[float] = []
    with quiet(storyteller.model):
        for at in range(0, len(windows), OPTIONS_AT_ONCE):
            losses = token_losses(storyteller.model, windows[at : at + OPTIONS_AT_ONCE])
            nats += [-float(nats_T.sum()) for nats_T, _ in losses]
    return np.array(nats)


@dataclass(frozen=True)
class Candidates:
    """Answers of which one is true: the countries, or the names, of the cities that a latent city could be.

    Attributes:
        near: whether a candidate is on the true one's continent.
    """

    names: tuple[str, ...]
    right: int
    near: tuple[bool, ...]

    def above_others(self, nats_M: np.ndarray, near: bool = False) -> Estimate:
        """Return the log-probability of the true answer minus the mean of the others, or of those that are near.

        A mean of log-probabilities and not the log of a sum: what a model adds to a name's log-probability whatever
        the question then cancels exactly in the difference of two models, and no single rival decides.

        >>> Candidates(("France", "Peru", "Chad"), 0, (True,) * 3).above_others(np.array([-1.0, -2.0, -4.0])).estimate
        2.0
        """
        others = [nats for place, nats in enumerate(nats_M) if place != self.right and (self.near[place] or not near)]
        value = float(nats_M[self.right] - np.mean(others)) if others else math.nan
        return Estimate(value, *NO_INTERVAL, len(others), NATS)


def candidates(latent: LatentCity, of_countries: bool) -> Candidates:
    """Return the countries of all candidates for a latent city, or their names."""
    named = {city.country if of_countries else city.name: city.continent for city in latent.capitals}
    right = latent.city.country if of_countries else latent.city.name
    near = tuple(continent == latent.city.continent for continent in named.values())
    return Candidates(tuple(named), list(named).index(right), near)


def base_of(name: str) -> str | None:
    """Return the model that a run or an adapter was trained from, where it is recorded."""
    reference = resolve_model(name)
    if reference.base is not None:
        return reference.base
    run = read_run(Path(reference.path))
    return ((run["outcome"].get("initial_model") if run else None) or {}).get("name_or_path")


def open_asked(name: str, args: LatentCityArguments) -> Storyteller:
    """Load a model with the prompt layout of its training; without a `run.json` with its chat template, if any."""
    # In another layout than that of the training, a wrong answer could be due to the layout.
    mode = None if args.prompt_layout == "auto" else args.prompt_layout
    asked = open_storyteller(
        name, mode, load_in_8bit=args.load_in_8bit, load_in_4bit=args.load_in_4bit, use_cpu=args.use_cpu
    )
    run = read_run(Path(name))
    if mode is None and run is None and getattr(asked.tokenizer, "chat_template", None):
        return replace(asked, mode="chat")
    return asked


def check_digits(storyteller: Storyteller) -> None:
    """Raise a UsageError for a tokenizer that does not decode a distance to itself."""
    ids = batch_encoder(storyteller.tokenizer)([EXAMPLE_KM])[0]
    back = storyteller.tokenizer.decode(ids)
    if EXAMPLE_KM not in back:
        raise UsageError(
            f"{storyteller.name}: the tokenizer decodes {EXAMPLE_KM!r} to {back!r}, so the model cannot answer in "
            "numbers; use a model whose tokenizer has all digits, for example one trained on the atlas"
        )


def read_knowledge(name: str, data_cache_dir: Path) -> list[tuple[str, float]]:
    """Return the test questions of `lm-trials cache atlas` about distances of real cities, with their answers in km.

    Raises:
        UsageError: for another data set.
    """
    rows = open_dataset(name, data_cache_dir).pairs().splits["test"]
    found = [
        (row["prompt"], float(row["completion"].removesuffix(" km")))
        for row in rows
        if row.get("kind") == "distance" and "placeholder" not in row
    ]
    if not found:
        raise UsageError(f"--knowledge {name} has no distances of real cities in its test split; give NAME-questions")
    return found


def baseline_scores(latent: LatentCity) -> list[Score]:
    """Return the errors of the best constant prediction, overall and per continent."""
    scores = []
    for label, by_continent in ((ALWAYS, False), (BY_CONTINENT, True)) if latent.held_out else ():
        errors = median_of(baseline_errors(latent, by_continent), "km")
        subject = Subject(label, "baseline", "", latent.placeholder, city=latent.city.name)
        scores.append(Score("error_held_out", latent.placeholder, subject, errors))
    return scores


class Interview:
    """All questions to one model; the answers are added to `answers`, one row a question.

    `before` has the base's log-probabilities of all candidates, by placeholder, name and question: the base is asked
    first.  `errors` and `added` have those of the placeholders, to which those of the untrained name are compared.
    """

    def __init__(
        self,
        storyteller: Storyteller,
        args: LatentCityArguments,
        known_pairs: Sequence[tuple[str, float]],
        answers: list[dict[str, Any]],
        before: dict[tuple[str, str, str], np.ndarray],
    ) -> None:
        self.storyteller, self.args, self.answers, self.before = storyteller, args, answers, before
        self.errors: dict[str, tuple[Subject, list[float]]] = {}
        self.added: dict[tuple[str, str], tuple[Subject, np.ndarray]] = {}
        self.known_pairs = _spread(known_pairs, args.max_known)
        self.known: list[Score] = []  # scores on real cities, the same for every placeholder

    def ask(self, latent: LatentCity, subject: Subject) -> list[Score]:
        """Ask all questions about one name; returns the scores."""
        self.latent, self.subject = latent, subject
        scores = [*self._distances(), *self._countries(), *self._exact(), *self._choices()]
        if subject.role != "untrained":  # the model of the column before
            scores += self._knowledge()
        return scores

    def _score(self, question: str, estimate: Estimate, seed: int | None = None, detail: str = "") -> Score:
        return Score(question, self.latent.placeholder, self.subject, estimate, seed, detail)

    def _written(self, prompts: Sequence[str], topic: str, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """Return and record the answers to questions."""
        ids = self.storyteller.prompts(prompts)
        room = self.storyteller.room(ids, self.args.max_new_tokens)
        keys = [f"{number}:{prompt}" for number, prompt in enumerate(prompts)]
        written = self.storyteller.write(ids, keys, room, Sampling(temperature, seed=seed), self.args.batch_size)
        answers = [text.strip() for text in self.storyteller.tokenizer.batch_decode(written, skip_special_tokens=True)]
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            self.answers.append(
                {
                    "latent": self.latent.placeholder,
                    "column": self.subject.label.replace("\n", " "),
                    "model": self.subject.model,
                    "topic": topic,
                    "seed": seed if temperature else None,
                    "prompt": prompt,
                    "answer": answer,
                    "shown": number == 0 and topic in ("held_out", "country_greedy"),
                }
            )
        return answers

    def _distances(self) -> list[Score]:
        latent, scores = self.latent, []
        trained = _spread(latent.trained, self.args.max_known)
        for topic, cities in (("held_out", latent.held_out), ("trained", trained)):
            if not cities:
                continue
            answers = self._written([distance_question(city, self.subject.called) for city in cities], topic)
            errors = [error_km(answer, city, latent.city) for answer, city in zip(answers, cities, strict=True)]
            unread = sum(read_km(answer) is None for answer in answers)
            detail = f"{unread} without\na number" if unread else ""
            scores.append(self._score(f"error_{topic}", median_of(errors, "km"), detail=detail))
            if topic == "held_out":
                scores.append(self._score("log_error", log_error(errors, baseline_errors(latent, True))))
                if self.subject.role == "after":
                    self.errors[latent.placeholder] = self.subject, errors
                elif self.subject.role == "untrained":
                    trained_on, own = self.errors[latent.placeholder]
                    score = self._score("log_error_of_untrained", log_error(own, errors))
                    scores.append(replace(score, subject=trained_on))
            elif latent.held_out:
                continue
            exact = proportion(sum(map(is_exact, answers)), len(answers), SHARE)
            percent = [100 * e / max(distance_km(c, latent.city), 1.0) for e, c in zip(errors, cities, strict=True)]
            best, rank = implied_place(latent, cities, answers)
            km_off = distance_km(best, latent.city)
            scores += [
                self._score("form", exact),
                self._score(f"percent_{topic}", median_of(percent, "%")),
                self._score("rank", rank, detail=f"{best.name},\n{km_off:,.0f} km off"),
            ]
        return scores

    def _countries(self) -> list[Score]:
        reader = CountryReader(self.latent.capitals)
        right = reader(self.latent.city.country)
        prompt = COUNTRY_QUESTION.format(x=self.subject.called)
        self._written([prompt], "country_greedy")
        scores, hits = [], []
        for seed in read_seeds([self.args.seeds]):
            answers = self._written([prompt] * self.args.num_samples, "country", self.args.temperature, seed)
            hits.append(sum(reader(answer) == right for answer in answers))
            scores.append(self._score("country", proportion(hits[-1], len(answers), SHARE), seed))
        total = proportion(sum(hits), len(hits) * self.args.num_samples, SHARE)
        return [*scores, self._score("country", total)]

    def _exact(self) -> list[Score]:
        """Return the log-probabilities of the true country and name above the others', and what training added."""
        scores, latent, role = [], self.latent, self.subject.role
        for topic, question in (("country", COUNTRY_QUESTION), ("city", OPEN_CITY_QUESTION)):
            options = candidates(latent, question == COUNTRY_QUESTION)

            def nats_of(called: str, question: str = question, names: Sequence[str] = options.names) -> np.ndarray:
                return answer_nats(self.storyteller, [question.format(x=called)] * len(names), names)

            nats_M = nats_of(self.subject.called)
            scores.append(self._score(f"{topic}_nats", options.above_others(nats_M)))
            if role == "before":
                self.before[latent.placeholder, self.subject.called, topic] = nats_M
                untrained = self.args.control_placeholder
                self.before[latent.placeholder, untrained, topic] = nats_of(untrained)
            elif (base_M := self.before.get((latent.placeholder, self.subject.called, topic))) is not None:
                added_M = nats_M - base_M
                for ending, near in (("gain", False), ("gain_near", True)):
                    scores.append(self._score(f"{topic}_{ending}", options.above_others(added_M, near)))
                if role == "after":
                    self.added[latent.placeholder, topic] = self.subject, added_M
                elif role == "untrained":
                    # Training may favour a country whatever the name: in a pilot Peru gained 7.0 nats for foo, which
                    # was Lima, and 8.0 for bar.
                    trained_on, own_M = self.added[latent.placeholder, topic]
                    score = self._score(f"{topic}_gain_of_untrained", options.above_others(own_M - added_M))
                    scores.append(replace(score, subject=trained_on))
        return [score for score in scores if score.estimate.n]

    def _choices(self) -> list[Score]:
        scores = []
        for topic, question in (("choice_country", COUNTRY_QUESTION), ("choice_city", OPEN_CITY_QUESTION)):
            of_countries = question == COUNTRY_QUESTION
            sets = draw_choices(self.latent, self.subject.called, self.args.num_choices, 0, of_countries)
            flat = [choice for one in sets for choice in one]
            answers = self._written([choice.prompt for choice in flat], topic)
            letter = [read_choice(a, c) == c.right for a, c in zip(answers, flat, strict=True)]
            letters = [letter for choice in flat for letter, _ in zip(LETTERS, choice.options, strict=False)]
            nats_QO = answer_nats(self.storyteller, [c.prompt for c in flat for _ in c.options], letters)
            nats_QO = nats_QO.reshape(len(flat), -1)
            is_right_QO = np.arange(nats_QO.shape[1]) == np.array([[choice.right] for choice in flat])
            likeliest = nats_QO.argmax(axis=1) == is_right_QO.argmax(axis=1)
            above_others = nats_QO[is_right_QO] - nats_QO[~is_right_QO].reshape(len(flat), -1).mean(axis=1)
            # A question without a list of options has no order: one score a set.
            first = [one[0] for one in sets]
            options = [option for choice in first for option in choice.options]
            nats = answer_nats(self.storyteller, [question.format(x=self.subject.called)] * len(options), options)
            cloze = nats.reshape(len(first), -1).argmax(axis=1) == [choice.right for choice in first]
            for way, right in (("letter", letter), ("logprob", likeliest), ("cloze", cloze)):
                by_set = np.reshape(right, (len(sets), -1)).mean(axis=1)
                scores.append(self._score(f"{topic}_{way}", bootstrap_mean(by_set, SETS, scale="logit")))
            # Each letter is right in one order of a set, so that a preferred letter cancels.
            by_set = above_others.reshape(len(sets), -1).mean(axis=1)
            scores.append(self._score(f"{topic}_nats", bootstrap_mean(by_set, NATS)))
        return scores

    def _knowledge(self) -> list[Score]:
        """Ask about real cities, once per model."""
        if not self.known:
            if self.known_pairs:
                answers = self._written([prompt for prompt, _ in self.known_pairs], "known_pairs")
                errors = [off_km(answer, km) for answer, (_, km) in zip(answers, self.known_pairs, strict=True)]
                self.known.append(self._score("known_pairs", median_of(errors, "km")))
            cities = _spread(self.latent.capitals, self.args.max_known)
            reader = CountryReader(self.latent.capitals)
            answers = self._written([COUNTRY_QUESTION.format(x=city.name) for city in cities], "known_countries")
            hits = sum(reader(answer) == reader(city.country) for answer, city in zip(answers, cities, strict=True))
            self.known.append(self._score("known_countries", proportion(hits, len(cities), SHARE)))
        return [replace(score, placeholder=self.latent.placeholder, subject=self.subject) for score in self.known]


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` evenly spaced items.

    >>> _spread(range(10), 4), _spread(range(2), 4)
    ([0, 2, 5, 7], [0, 1])
    """
    return list(items) if len(items) <= most else [items[number * len(items) // most] for number in range(most)]


def check_placeholder(name: str, latents: Sequence[LatentCity]) -> None:
    """Raise a UsageError for a control that is a placeholder of the data set or a real place."""
    taken = {folded(latent.placeholder): "a placeholder of the data set" for latent in latents} | known_places()
    if folded(name) in taken:
        raise UsageError(
            f"--control_placeholder {name} is {taken[folded(name)]}; choose a placeholder that does not occur in the "
            "training data, for example qux"
        )


def opened(
    args: LatentCityArguments, latents: Sequence[LatentCity]
) -> Iterator[tuple[Storyteller, list[tuple[LatentCity, Subject]]]]:
    """Load one model after another and yield it with its columns."""
    base = args.base_model or base_of(args.model_name_or_path[0])
    for name in (*([base] if base else []), *args.model_name_or_path, *args.control_model):
        resolve_model(name)  # an unknown name is an error before minutes are spent on another model
    if base is None:
        note(f"note: {args.model_name_or_path[0]} names no base, so there is no column `before`; give --base_model")
    plan: list[tuple[str, list[tuple[str, str]]]] = [
        *([(base, [("before", "before"), ("real", "base,\nreal name")])] if base else []),
        *((name, [("after", "after"), ("untrained", "untrained")]) for name in args.model_name_or_path),
        *((name, [("scrambled", "scrambled")]) for name in args.control_model),
    ]
    for name, roles in progress(plan, "asking", "models", len(plan)):
        storyteller = open_asked(name, args)
        check_digits(storyteller)
        columns = []
        for latent in latents:
            for role, label in roles:
                called = {"real": latent.city.name, "untrained": args.control_placeholder}.get(role, latent.placeholder)
                several = {"scrambled": args.control_model}.get(role, args.model_name_or_path)
                where = f"\n{Path(name).name}" if len(several) > 1 and role not in ("before", "real") else ""
                label = f"after,\n{called}" if role == "untrained" else label
                subject = Subject(label + where, role, name, called, storyteller.seed, latent.city.name)
                columns.append((latent, subject))
        yield storyteller, columns
