"""Report of the embeddings probe: rows, tables on the terminal, and the finding."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_trials.console import show_table
from lm_trials.probing.embeddings.categories import Categories, Separation
from lm_trials.probing.embeddings.geometry import Embeddings, Picture, difference_of, mean_of, movement, nearest_tokens
from lm_trials.probing.findings import Finding
from lm_trials.probing.tables import ProbeTable, Row, exact, interval, sign

MEASURES = {"cosine_distance": "cosine distance", "relative_move": "move over the norm before"}
ALL, SEEN, UNSEEN, BEYOND = "all tokens", "tokens that occur", "tokens that never occur", "occur less never occur"
CATEGORIES, SHUFFLED = "categories", "categories shuffled"
CAPTION = "[95 % bootstrap-t interval over tokens]"


def movement_rows(models: Sequence[Embeddings], counts_V: np.ndarray | None, seed: int) -> ProbeTable:
    """Return how far each model's tokens moved since the first model and since the previous one.

    Args:
        counts_V: how often each token occurs in the training data; None if unknown.
    """
    rows = ProbeTable()
    groups = {ALL: ("finding", np.ones(len(models[0].table_VD), dtype=bool))}
    if counts_V is not None:
        groups |= {SEEN: ("finding", counts_V > 0), UNSEEN: ("control", counts_V == 0)}
    for before, model in itertools.pairwise(models):
        for since, other in (("first", models[0]), ("previous", before)):
            for metric, values_V in movement(other.table_VD, model.table_VD).items():
                about = {**_about(model), "metric": metric, "since": since, "from": other.label}
                for group, (role, tokens_V) in groups.items():
                    if estimate := mean_of(values_V, tokens_V, MEASURES[metric], seed):
                        spread = np.nanquantile(values_V[tokens_V], [0.1, 0.5, 0.9]).tolist()
                        quantiles = dict(zip(("tenth", "median", "nine_tenths"), spread, strict=True))
                        rows.add(estimate, about | {"role": role, "group": group}, **quantiles)
                if counts_V is not None and (counts_V > 0).any() and (counts_V == 0).any():
                    apart = difference_of(values_V, counts_V > 0, MEASURES[metric], seed)
                    rows.add(apart, about | {"role": "finding", "group": BEYOND})
    return rows


def separation_rows(model: Embeddings, found: Mapping[str, Separation], role: str = "finding") -> ProbeTable:
    """Return how well the categories of a model's tokens are separated, and the same with shuffled categories."""
    rows = ProbeTable()
    for metric, measured in found.items():
        about = {**_about(model), "metric": metric}
        rows.add(measured.found, about | {"role": role, "group": CATEGORIES}, p=measured.p)
        rows.add(measured.shuffled, about | {"role": "control", "group": SHUFFLED})
    return rows


def picture_rows(picture: Picture) -> ProbeTable:
    """Return the share of each model's variance that the figure shows."""
    rows = ProbeTable()
    for label, share in picture.explained_of.items():
        about = {"model": label, "metric": "variance_shown", "role": "finding", "group": "tokens shown"}
        rows.add(exact(share, len(picture.points[label]), "share of the model's variance"), about)
    return rows


def point_rows(
    models: Sequence[Embeddings], picture: Picture, categories: Categories, tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Return the points of the figure."""
    tokens, names = categories.tokens_N.tolist(), categories.names_N.tolist()
    pieces = tokenizer.convert_ids_to_tokens(tokens)
    columns = ("model", "step", "token", "piece", "category", "x", "y")
    return [
        dict(zip(columns, (model.label, model.step, token, piece, name, *point), strict=True))
        for model in models
        for token, piece, name, point in zip(tokens, pieces, names, picture.points[model.label].tolist(), strict=True)
    ]


def neighbour_rows(
    models: Sequence[Embeddings], words: Mapping[str, int], count: int, tokenizer: PreTrainedTokenizerBase
) -> ProbeTable:
    """Return the nearest neighbours of words in each model, without intervals."""
    rows = ProbeTable()
    for model in models:
        for word, token in words.items():
            for rank, (other, cosine) in enumerate(nearest_tokens(model.table_VD, token, count), start=1):
                piece = tokenizer.convert_ids_to_tokens([other])[0]
                about = {**_about(model), "word": word, "rank": rank, "neighbour": piece}
                rows.add(exact(cosine, 1, "cosine similarity"), about)
    return rows


def _about(model: Embeddings) -> Row:
    return {"model": model.label, "step": model.step, "seed": model.seed}


def chosen(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the items, evenly spaced, including the first and the last.

    >>> chosen(list(range(10)), 4), chosen([1, 2], 6)
    ([0, 3, 6, 9], [1, 2])
    """
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def show_movement(rows: ProbeTable) -> None:
    """Print how far tokens moved in each model."""
    rows = rows.where(metric="cosine_distance")
    there = rows.distinct("group")
    headings = {ALL: "all tokens", SEEN: "in the data", UNSEEN: "not in the data"}
    columns = {headings[group]: {"since": "first", "group": group} for group in headings if group in there}
    columns["since previous"] = {"since": "previous", "group": ALL}
    models = {label: {"model": label} for label in rows.distinct("model")}
    rows.show("Movement of embeddings since the first model, cosine distance", "model", models, columns, CAPTION)


def show_separation(rows: ProbeTable) -> None:
    """Print how well categories are separated, model by model, beside the shuffled categories."""
    rows = ProbeTable(row for row in rows if row["group"] in (CATEGORIES, SHUFFLED))
    lines = {
        f"{model}, {metric.replace('_', ' ')}": {"model": model, "metric": metric}
        for model, metric in rows.distinct("model", "metric")
    }
    columns = {group: {"group": group} for group in (CATEGORIES, SHUFFLED)}
    rows.show("Separation of categories in all dimensions", "model, measure", lines, columns, CAPTION, interval)


def show_neighbours(rows: ProbeTable, models: Sequence[Embeddings]) -> None:
    """Print the nearest neighbours of each word in the first and the last model."""
    lines = [
        [
            f"{word}, {model.label}",
            " ".join(f"{r['neighbour']} {r['estimate']:.2f}" for r in rows.where(word=word, model=model.label)),
        ]
        for word in rows.distinct("word")
        for model in chosen(models, 2)
    ]
    if lines:
        show_table("Nearest neighbours by cosine similarity", ["word, model", "neighbours"], lines)


def finding_of(
    models: Sequence[Embeddings],
    apart: Mapping[str, Separation],
    random: Mapping[str, Separation],
    moved: ProbeTable,
    picture: Picture,
    categories: Categories,
    counted: bool,
) -> Finding:
    """Write the finding and that of the controls.

    Args:
        counted: whether only tokens that occur in the training data have categories.
    """
    last, metric = models[-1].label, next(iter(apart))
    found, shuffled, without = apart[metric].found, apart[metric].shuffled, random[metric].found
    known = found.lower > shuffled.upper and found.lower > without.upper  # a missing interval shows nothing
    sentences = [
        f"in {last}, {interval(found)} of a token's {metric.split('_')[0]} nearest tokens are of its category "
        f"({found.n} tokens, {len(categories.counts)} categories): "
        + ("more than in the controls" if known else "not shown to be more than in the controls")
    ]
    controls = [
        f"with shuffled categories {interval(shuffled)} (p = {apart[metric].p:.3f}), in a model with random weights "
        f"{interval(without)}",
        "only tokens that occur in the training data have categories"
        if counted
        else "without --dataset_name, tokens that never occur in training may be separated for that reason alone",
    ]
    moved = moved.where(model=last, since="first", metric="cosine_distance")
    if everything := moved.find(group=ALL):
        sentences.append(f"since {models[0].label}, {_moved(everything, 'tokens')}")
    if beyond := moved.find(group=BEYOND):
        verdict = ("no farther", "farther", "less far")[sign(beyond)]
        sentences.append(
            f"tokens that occur in the training data moved {verdict} than those that never do, by {interval(beyond)}"
        )
        controls.append(_moved(moved.find(group=UNSEEN) or {}, UNSEEN))
    elif moved.find(group=SEEN):
        controls.append("all tokens occur in the training data, so no token shows the movement without occurrences")
    if picture.explained:
        shares = " + ".join(f"{share:.3f}" for share in picture.explained)
        sentences.append(f"the figure shows {shares} of the variance")
    return Finding.of(sentences, controls)


def _moved(row: Row, what: str) -> str:
    return f"{row['n']:,} {what} moved by a cosine distance of {interval(row)}"
