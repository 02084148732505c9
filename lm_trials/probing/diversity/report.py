"""Report of the diversity probe: tables on the terminal; JSON, CSV and heat maps in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from lm_trials.console import show_facts
from lm_trials.files import write_csv, write_json
from lm_trials.probing.diversity.batches import CONTROLS
from lm_trials.probing.diversity.flags import DiversityArguments
from lm_trials.probing.tables import ProbeTable, interval
from lm_trials.reporting.pictures import save_pictures

if TYPE_CHECKING:  # --text_only needs no torch
    from matplotlib.figure import Figure

    from lm_trials.probing.diversity.coefficient import GroupEmbeddings

SHOWN = {
    "as defined": {"layers": "all layers", "noise": "as drawn"},
    "without noise": {"layers": "all layers", "noise": "removed"},
    "without tables": {"layers": "without tables", "noise": "removed"},
}


def show_diversity(rows: ProbeTable, names: Mapping[str, str]) -> None:
    """Print the coefficients by each probe network (`names`), a line for each data set and control."""
    for probe in filter(None, rows.distinct("probe")):
        found = rows.where(probe=probe)
        lines = {
            f"cross: {name}" if measure == "cross-diversity" else name: {"measure": measure, "data_set": name}
            for measure, name in found.distinct("measure", "data_set")
        }
        found.show(
            f"Diversity measured with {names[probe]}: {found[0]['unit']}, 95 % interval over n batches",
            "",
            lines,
            SHOWN,
            "\n".join(f"{name}: {meaning}" for name, meaning in CONTROLS.items())
            + "\nwithout noise: sampling noise of the draws removed\nwithout tables: also without the token and "
            "position tables, which mainly show which tokens occur",
            lambda row: interval(row, 4, lines=True),
            counted="n",
        )


def show_text_measures(rows: ProbeTable, num_words: int) -> None:
    """Print the measures without a model, a line for each data set."""
    rows = rows.where(probe="")
    rows.show(
        f"The same texts without a model: compression ratio and shares of distinct n-grams, first {num_words:,} words "
        "of each batch, 95 % interval over n batches",
        "",
        {name: {"data_set": name} for name in rows.distinct("data_set")},
        {name.removesuffix(" ratio").removeprefix("distinct "): {"measure": name} for name in rows.distinct("measure")},
        counted="n",
    )


def write_diversity(
    args: DiversityArguments, rows: ProbeTable, results: Sequence[GroupEmbeddings], heat_maps: Mapping[str, Figure]
) -> None:
    """Write `diversity.json` and `.csv`, and the distances of each probe as a table and as a heat map.

    Args:
        rows: all estimates.
        results: one for each probe; none with `--text_only`.
        heat_maps: the figure of each probe's distances.
    """
    folder = args.folder()
    facts = {result.probe: result.facts() for result in results}
    about = {"arguments": asdict(args), "controls": CONTROLS, "groups": facts, "rows": rows}
    write_json(folder / "diversity.json", about)
    write_csv(folder / "diversity.csv", rows)
    for result in results:
        name = "distances-random-weights" if result.probe == "random weights" else "distances"
        batches = [f"{group.name}:{number}" for group in result.groups for number in range(len(group.batches))]
        write_csv(folder / f"{name}.csv", [
            {"batch": batch, **dict(zip(batches, distances_N, strict=True))}
            for batch, distances_N in zip(batches, result.distances_NN.tolist(), strict=True)
        ])  # fmt: skip
        save_pictures(heat_maps[result.probe], folder / name)
    show_facts("diversity", {"table": str(folder / "diversity.csv"), "results": str(folder)})
