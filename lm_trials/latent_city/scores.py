"""Scores of what a model says about a latent city: its distances, the place that fits them, and chance and baselines.

Shape suffixes: N = questions, M = candidate cities, R = resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm_trials.estimates import RESAMPLES, Estimate, percentile_interval
from lm_trials.evaluation.losses import quiet
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.latent_city.cities import HALF_CIRCUMFERENCE_KM, City, distance_km, distances_km, places
from lm_trials.latent_city.questions import LatentCity, read_km
from lm_trials.pairs.layouts import chat_example, instruct_examples
from lm_trials.tokens.tokenizers import batch_encoder


@dataclass(frozen=True)
class ImpliedPlace:
    """The city whose true distances fit the answers best, and where the true one stands among all candidates."""

    city: City
    rank: Estimate
    km_off: float


def bootstrap_median(values_N: Sequence[float], unit: str, seed: int = 0) -> Estimate:
    """Estimate a median over questions, with a percentile bootstrap interval.

    >>> print(bootstrap_median([1.0, 2.0, 3.0, 4.0, 100.0], "km"))
    3.000 [1.000, 100.000] km (n=5)
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    drawn_RN = _resamples(len(values_N), seed)
    interval = percentile_interval(np.median(values_N[drawn_RN], axis=1), 0.95) if len(values_N) > 1 else (np.nan,) * 2
    return Estimate(float(np.median(values_N)), *interval, len(values_N), unit)


def _resamples(n: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(n, size=(RESAMPLES, n))


def baseline_errors(latent: LatentCity, by_continent: bool) -> list[float]:
    """Return the errors in km over held-out cities of whoever says one number: the median of the trained distances.

    With `by_continent` it is the median of those to the known city's continent, where there are any: the best that can
    be had from knowing continents and nothing of places.
    """
    trained = [(city.continent, distance_km(city, latent.city)) for city in latent.trained]
    overall = float(np.median([distance for _, distance in trained]))
    medians = {
        continent: float(np.median([distance for where, distance in trained if where == continent]))
        for continent, _ in trained
    }
    said = [medians.get(city.continent, overall) if by_continent else overall for city in latent.held_out]
    return [abs(guess - distance_km(city, latent.city)) for guess, city in zip(said, latent.held_out, strict=True)]


def implied_place(latent: LatentCity, asked: Sequence[City], answers: Sequence[str], seed: int = 0) -> ImpliedPlace:
    """Find the city whose true distances to the cities asked about fit the answers best: by the mean absolute error.

    An answer without a number fits no city better than another.  Rank 1 is the best fit; chance is the middle of all.
    """
    said_N = np.array([np.nan if (value := read_km(answer)) is None else value for answer in answers])
    true_NM = distances_km(places(asked), places(latent.capitals))
    errors_NM = np.minimum(np.abs(true_NM - said_N[:, None]), HALF_CIRCUMFERENCE_KM)
    errors_NM = np.where(np.isnan(errors_NM), HALF_CIRCUMFERENCE_KM, errors_NM)
    true_place = latent.capitals.index(latent.city)
    mean_M = errors_NM.mean(axis=0)
    resampled_RM = errors_NM[_resamples(len(asked), seed)].mean(axis=1)
    ranks_R = _rank(resampled_RM, true_place)
    interval = percentile_interval(ranks_R, 0.95) if len(asked) > 1 else (np.nan,) * 2
    unit = f"rank of {len(latent.capitals)}"
    best = latent.capitals[int(mean_M.argmin())]
    rank = Estimate(float(_rank(mean_M, true_place)), *interval, len(asked), unit)
    return ImpliedPlace(best, rank, distance_km(best, latent.city))


def _rank(errors: np.ndarray, place: int) -> np.ndarray:
    """Return the rank of a candidate in (..., M) errors; those that fit as well share the middle of their ranks."""
    own = errors[..., place : place + 1]
    return 1.0 + (errors < own).sum(axis=-1) + ((errors == own).sum(axis=-1) - 1) / 2


@torch.no_grad()
def answer_nats(
    storyteller: Storyteller, questions: Sequence[str], answers: Sequence[str], batch_size: int = 64
) -> np.ndarray:
    """Return the (N,) log-probabilities, in nats, of whole answers in the layout that the model is asked in.

    What closes an answer (EOS, the end of a turn) belongs to it, so that `Niger` is not the beginning of `Nigeria`; a
    model that only completes texts has learned no end, and is asked without one.
    """
    tokenizer = storyteller.tokenizer
    if storyteller.mode == "instruct":
        examples = [(e.input_ids, e.completion_mask) for e in instruct_examples(tokenizer, questions, answers)]
        # BOS, the first of the completion, is the same for all options and comes before anything is said.
    elif storyteller.mode == "chat":
        turns = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in zip(questions, answers, strict=True)
        ]
        examples = [(e.input_ids, e.completion_mask) for e in (chat_example(tokenizer, turn, 1) for turn in turns)]
    else:
        prompts = storyteller.prompts(questions)
        opening = len(prompts[0]) - len(batch_encoder(tokenizer)([questions[0]])[0])
        whole = batch_encoder(tokenizer)([f"{q} {a}" for q, a in zip(questions, answers, strict=True)])
        examples = []
        for prompt, ids in zip(prompts, whole, strict=True):
            shared = len(prompt) - opening
            examples.append(([*prompt[:opening], *ids], [0] * (opening + shared) + [1] * (len(ids) - shared)))
    nats: list[float] = []
    model, pad = storyteller.model, storyteller.ends[0]
    with quiet(model):
        for at in range(0, len(examples), batch_size):
            nats += _batch_nats(model, examples[at : at + batch_size], pad)
    return np.array(nats)


def _batch_nats(model: torch.nn.Module, examples: Sequence[tuple[list[int], list[int]]], pad: int) -> list[float]:
    longest = max(len(ids) for ids, _ in examples)
    input_ids = torch.full((len(examples), longest), pad)
    seen, counted = torch.zeros_like(input_ids), torch.zeros(input_ids.shape)
    for row, (ids, mask) in enumerate(examples):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        seen[row, : len(ids)] = 1
        counted[row, : len(ids)] = torch.tensor(mask, dtype=torch.float32)
    device = next(model.parameters()).device
    logits = model(input_ids=input_ids.to(device), attention_mask=seen.to(device), use_cache=False).logits.float().cpu()
    picked = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, input_ids[:, 1:, None])[..., 0]
    return (picked.double() * counted[:, 1:]).sum(dim=1).tolist()
