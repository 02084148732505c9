"""Report of the diversity probe: tables on the terminal, and JSON, CSV and a heat map in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lm_trials.console import UsageError, note
from lm_trials.files import write_csv, write_json
from lm_trials.probing.diversity.batches import CONTROLS
from lm_trials.probing.diversity.flags import DiversityArguments
from lm_trials.probing.tables import ProbeTable, Row, interval

if TYPE_CHECKING:  # the text measures are written without torch
    from matplotlib.figure import Figure

    from lm_trials.probing.diversity.coefficient import GroupEmbeddings

SHOWN = {
    "as defined": {"layers": "all layers", "noise": "as drawn"},
    "noise removed": {"layers": "all layers", "noise": "removed"},
    "... and no tables": {"layers": "without tables", "noise": "removed"},
}


def show_diversity(rows: ProbeTable, model: str) -> None:
    """Print the coefficients of each probe, a row for each data set and control."""
    for probe in filter(None, rows.distinct("probe")):
        found = rows.where(probe=probe)
        lines = {
            f"cross: {name}" if measure == "cross-diversity" else name: {"measure": measure, "data_set": name}
            for measure, name in found.distinct("measure", "data_set")
        }
        found.show(
            f"diversity by {model}, {probe}; {found[0]['unit']}, 95 % over batches",
            "",
            lines,
            SHOWN,
            "\n".join(f"{name}: {meaning}" for name, meaning in CONTROLS.items())
            + "\ntables: the rows of tokens and positions, which tell above all which tokens a batch has",
            lambda row: interval(row, 4),
            counted="n",
        )


def show_text_measures(rows: ProbeTable, num_words: int) -> None:
    """Print what needs no model, a row for each data set."""
    rows = rows.where(probe="")
    rows.show(
        f"the same texts without a model, first {num_words:,} words of each batch, 95 % over batches",
        "",
        {name: {"data_set": name} for name in rows.distinct("data_set")},
        {measure: {"measure": measure} for measure in rows.distinct("measure")},
        cell=interval,
        counted="batches",
    )


def write_diversity(
    args: DiversityArguments, rows: ProbeTable, results: Sequence[GroupEmbeddings], heat_maps: Mapping[str, Figure]
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


def _distance_rows(result: GroupEmbeddings) -> list[Row]:
    """Return a row for each batch, with its distance to every batch."""
    names = [f"{group.name}:{number}" for group in result.groups for number in range(len(group.batches))]
    return [
        {"batch": name, **dict(zip(names, distances_N, strict=True))}
        for name, distances_N in zip(names, result.distances_NN.tolist(), strict=True)
    ]


def _suffix(probe: str) -> str:
    """Return what marks the files of a probe with random weights; the trained one's have plain names."""
    return "-random-weights" if probe == "random weights" else ""
