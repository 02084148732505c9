"""Findings of the embeddings probe: from tables of embeddings to rows, tables on the terminal and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_trials.console import show_table
from lm_trials.probing.embeddings.categories import Categories, Separation
from lm_trials.probing.embeddings.geometry import (
    Embeddings,
    Movement,
    Picture,
    difference_of,
    mean_of,
    nearest_tokens,
)
from lm_trials.probing.findings import Finding, interval

Row = dict[str, Any]
MEASURES = {"cosine_distance": "cosine distance", "relative_move": "move over the norm before"}
ALL, SEEN, UNSEEN, BEYOND = "all tokens", "tokens that occur", "tokens that never occur", "occur less never occur"


def movement_rows(models: Sequence[Embeddings], counts_V: np.ndarray | None, seed: int) -> list[Row]:
    """Return how far each model's tokens are from the first one's and from the one's before.

    Args:
        counts_V: how often each token occurs in the training data; None where that is not known.
    """
    rows = []
    everything = np.ones(len(models[0].table_VD), dtype=bool)
    for place, model in enumerate(models[1:], start=1):
        for since, other in (("first", models[0]), ("previous", models[place - 1])):
            moved = Movement.between(other.table_VD, model.table_VD)
            for metric, values_V in (("cosine_distance", moved.distance_V), ("relative_move", moved.relative_V)):
                about = {**_about(model), "metric": metric, "since": since, "from": other.label}
                groups = {ALL: ("finding", everything)}
                if counts_V is not None:
                    groups |= {SEEN: ("finding", counts_V > 0), UNSEEN: ("control", counts_V == 0)}
                for group, (role, tokens_V) in groups.items():
                    if estimate := mean_of(values_V, tokens_V, MEASURES[metric], seed):
                        spread = np.nanquantile(values_V[tokens_V], [0.1, 0.5, 0.9]).tolist()
                        quantiles = dict(zip(("tenth", "median", "nine_tenths"), spread, strict=True))
                        rows.append({**about, "role": role, "group": group, **estimate.row(), **quantiles})
                if counts_V is not None and (counts_V > 0).any() and (counts_V == 0).any():
                    apart = difference_of(values_V, counts_V > 0, MEASURES[metric], seed)
                    rows.append({**about, "role": "finding", "group": BEYOND, **apart.row()})
    return rows


def separation_rows(model: Embeddings, found: Mapping[str, Separation], role: str = "finding") -> list[Row]:
    """Return how well the categories of a model's tokens can be told apart, and with the categories shuffled."""
    rows = []
    for metric, measured in found.items():
        about = {**_about(model), "metric": metric}
        rows.append({**about, "role": role, "group": "categories", **measured.found.row(), "p": measured.p})
        rows.append({**about, "role": "control", "group": "categories shuffled", **measured.shuffled.row()})
    return rows


def picture_rows(picture: Picture) -> list[Row]:
    """Return what share of each model's variance the picture shows."""
    return [
        {"model": label, "metric": "variance_shown", "role": "finding", "group": "tokens shown", "estimate": share,
         "lower": None, "upper": None, "n": len(picture.points[label]), "unit": "share of the model's variance"}
        for label, share in picture.explained_of.items()
    ]  # fmt: skip


def point_rows(
    models: Sequence[Embeddings], picture: Picture, categories: Categories, tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Return the picture's points, for the figure and for people's own."""
    pieces = tokenizer.convert_ids_to_tokens(categories.tokens_N.tolist())
    return [
        {"model": model.label, "step": model.step, "token": int(token), "piece": piece, "category": str(name),
         "x": float(x), "y": float(y)}
        for model in models
        for token, piece, name, (x, y) in zip(
            categories.tokens_N, pieces, categories.names_N, picture.points[model.label], strict=True
        )
    ]  # fmt: skip


def neighbour_rows(
    models: Sequence[Embeddings], words: Mapping[str, int], count: int, tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Return the nearest neighbours of words in each model; a cosine of two tokens has no interval."""
    measured = {"lower": None, "upper": None, "n": 1, "unit": "cosine similarity"}
    rows = []
    for model in models:
        for word, token in words.items():
            for rank, (other, cosine) in enumerate(nearest_tokens(model.table_VD, token, count), start=1):
                piece = tokenizer.convert_ids_to_tokens([other])[0]
                about = {**_about(model), "word": word, "rank": rank, "neighbour": piece}
                rows.append({**about, "estimate": cosine, **measured})
    return rows


def _about(model: Embeddings) -> Row:
    return {"model": model.label, "step": model.step, "seed": model.seed}


def chosen(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the items, evenly spaced, the first and the last among them.

    >>> chosen(list(range(10)), 4), chosen([1, 2], 6)
    ([0, 3, 6, 9], [1, 2])
    """
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def show_movement(rows: Sequence[Row]) -> None:
    """Print how far tokens moved, model by model."""
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row["metric"] == "cosine_distance":
            cells.setdefault((row["model"], row["since"]), {})[row["group"]] = row
    groups = [group for group in (ALL, SEEN, UNSEEN) if any(group in found for found in cells.values())]
    lines = []
    for model in dict.fromkeys(label for label, _ in cells):
        line = [_cell(cells[model, "first"].get(group)) for group in groups]
        lines.append([model, *line, _cell(cells[model, "previous"].get(ALL))])
    columns = ["model", *groups, "since the model before"]
    show_table("how far embeddings moved since the first model, cosine distance", columns, lines, CAPTION)


CAPTION = "[95 % bootstrap interval over tokens, which are the sample here]"


def show_separation(rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Print how well categories can be told apart."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        line = [model]
        for metric in metrics:
            for group in ("categories", "categories shuffled"):
                line.append(
                    _cell(
                        next((r for r in rows if (r["model"], r["metric"], r["group"]) == (model, metric, group)), None)
                    )
                )
        lines.append(line)
    columns = [part for metric in metrics for part in (metric.replace("_", " "), "shuffled")]
    show_table("how well categories can be told apart, in all dimensions", ["model", *columns], lines, CAPTION)


def show_neighbours(rows: Sequence[Row], models: Sequence[Embeddings]) -> None:
    """Print the nearest neighbours of each word in the first and the last model."""
    lines = []
    for word in dict.fromkeys(row["word"] for row in rows):
        for model in chosen(models, 2):
            near = [row for row in rows if (row["word"], row["model"]) == (word, model.label)]
            lines.append([f"{word}, {model.label}", " ".join(f"{r['neighbour']} {r['estimate']:.2f}" for r in near)])
    if lines:
        show_table("nearest neighbours, by cosine", ["word, model", "neighbours"], lines)


def _cell(row: Row | None) -> str:
    return "-" if row is None else f"{row['estimate']:.3f}\n[{row['lower']:.3f}, {row['upper']:.3f}]"


def finding_of(
    models: Sequence[Embeddings],
    apart: Mapping[str, Separation],
    random: Mapping[str, Separation],
    movement: Sequence[Row],
    picture: Picture,
    categories: Categories,
    counted: bool,
) -> Finding:
    """Put the sentence and that of the controls together from the numbers.

    Args:
        counted: whether the categories are among tokens that occur in the training data.
    """
    last, metric = models[-1].label, next(iter(apart))
    found, shuffled, without = apart[metric].found, apart[metric].shuffled, random[metric].found
    known = found.lower > max(shuffled.upper, without.upper)
    sentences = [
        f"in {last}, {interval(found)} of a token's {metric.split('_')[0]} nearest are of its category "
        f"({found.n} tokens, {len(categories.counts)} categories): "
        + ("more than the controls give" if known else "not shown to be more than the controls give")
    ]
    controls = [
        f"with the categories shuffled {interval(shuffled)} (p = {apart[metric].p:.3f}), in a model of random weights "
        f"{interval(without)}",
        "categories are among tokens that occur in the training data"
        if counted
        else "without --dataset_name, tokens that training never saw may make a category of their own",
    ]
    moved = {
        row["group"]: row
        for row in movement
        if (row["model"], row["since"], row["metric"]) == (last, "first", "cosine_distance")
    }
    if ALL in moved:
        sentences.append(f"since {models[0].label} {_told(moved[ALL], 'tokens')}")
    if BEYOND in moved:
        apart_by = moved[BEYOND]
        verdict = "farther" if apart_by["lower"] > 0 else "less far" if apart_by["upper"] < 0 else "no farther"
        sentences.append(
            f"tokens that occur in the training data moved {verdict} than those that never do, by {_numbers(apart_by)}"
        )
        controls.append(f"what training does to any token: {_told(moved[UNSEEN], UNSEEN)}")
    elif SEEN in moved:
        controls.append("every token occurs in the training data, so none shows what training does to any token")
    if picture.explained:
        shares = " + ".join(f"{share:.3f}" for share in picture.explained)
        sentences.append(f"the picture shows {shares} of the variance")
    return Finding("; ".join(sentences), "; ".join(controls))


def _told(row: Row, what: str) -> str:
    return f"{row['n']:,} {what} moved by a cosine distance of {_numbers(row)}"


def _numbers(row: Row) -> str:
    return f"{row['estimate']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}]"
