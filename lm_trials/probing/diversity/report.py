"""Results of the diversity probe: tables on the terminal, and JSON, CSV and a heat map in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_trials.console import UsageError, note, show_table
from lm_trials.estimates import Estimate
from lm_trials.files import write_csv, write_json
from lm_trials.probing.diversity.batches import CONTROLS
from lm_trials.probing.diversity.flags import DiversityArguments

if TYPE_CHECKING:  # the text measures are written without torch
    from matplotlib.figure import Figure

    from lm_trials.probing.diversity.coefficient import GroupEmbeddings

FIELDS = ("estimate", "lower", "upper", "n", "unit")


SHOWN = {
    ("all layers", "as drawn"): "as defined",
    ("all layers", "removed"): "noise removed",
    ("without tables", "removed"): "... and no tables",
}


def show_diversity(rows: Sequence[Mapping[str, Any]], model: str) -> None:
    """Print the coefficients of each probe, a row for each data set and control."""
    for probe in dict.fromkeys(row["probe"] for row in rows if row["probe"]):
        of_probe = [row for row in rows if row["probe"] == probe]
        names = list(dict.fromkeys((row["measure"], row["data_set"]) for row in of_probe))
        cells = {
            (row["measure"], row["data_set"], row["layers"], row["noise"]): Estimate(*(row[name] for name in FIELDS))
            for row in of_probe
        }
        show_table(
            f"diversity by {model}, {probe}; {of_probe[0]['unit']}, 95 % over batches",
            ["", "n", *SHOWN.values()],
            [
                [
                    f"cross: {name}" if measure == "cross-diversity" else name,
                    str(cells[measure, name, "all layers", "as drawn"].n),
                    *(_interval(cells[measure, name, *choice], 4) for choice in SHOWN),
                ]
                for measure, name in names
            ],
            caption="\n".join(f"{name}: {meaning}" for name, meaning in CONTROLS.items())
            + "\ntables: the rows of tokens and positions, which tell above all which tokens a batch has",
        )


def show_text_measures(measures: Mapping[str, Mapping[str, Estimate]], num_words: int) -> None:
    """Print what needs no model, a row for each data set."""
    columns = list(next(iter(measures.values())))
    show_table(
        f"the same texts without a model, first {num_words:,} words of each batch, 95 % over batches",
        ["", "batches", *columns],
        [
            [name, f"{of_set[columns[0]].n}", *(_interval(of_set[column]) for column in columns)]
            for name, of_set in measures.items()
        ],
    )


def _interval(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.estimate:.{digits}f} [{estimate.lower:.{digits}f}, {estimate.upper:.{digits}f}]"


def write_diversity(
    args: DiversityArguments,
    rows: Sequence[Mapping[str, Any]],
    results: Sequence[GroupEmbeddings],
    heat_maps: Mapping[str, Figure],
) -> Path:
    """Write `diversity.json` and `.csv`, and of each probe the distances as a table and as a heat map.

    Args:
        args: the flags, which go into `diversity.json`.
        rows: all estimates.
        results: of each probe; none where only texts were measured.
        heat_maps: the picture of each probe's distances.

    Raises:
        UsageError: where the folder cannot be written to.
    """
    folder = args.folder()
    facts = {result.probe: result.facts() for result in results}
    about = {"arguments": asdict(args), "controls": CONTROLS, "groups": facts, "rows": rows}
    try:
        write_json(folder / "diversity.json", about)
        write_csv(folder / "diversity.csv", rows)
        for result in results:
            write_csv(folder / f"distances{_suffix(result.probe)}.csv", _distance_rows(result))
            picture = folder / f"distances{_suffix(result.probe)}.png"
            unfinished = picture.with_name(f".{picture.name}.unfinished")
            heat_maps[result.probe].savefig(unfinished, format="png", dpi=120)
            unfinished.replace(picture)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to ({error.strerror}); give another --output_dir") from None
    note(f"The results lie in {folder}.")
    return folder


def _distance_rows(result: GroupEmbeddings) -> list[dict[str, Any]]:
    """Return a row for each batch, with its distance to every batch."""
    names = [f"{group.name}:{number}" for group in result.groups for number in range(len(group.batches))]
    return [
        {"batch": name, **dict(zip(names, distances_N, strict=True))}
        for name, distances_N in zip(names, result.distances_NN.tolist(), strict=True)
    ]


def _suffix(probe: str) -> str:
    """Return what marks the files of a probe with random weights; the trained one's have plain names."""
    return "-random-weights" if probe == "random weights" else ""
