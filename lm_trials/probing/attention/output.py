"""What the attention probe writes: tables, figures, the page, and the finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate, bootstrap_means
from lm_trials.probing.attention.figures import head_figure, maps_figure, statistics_figure, steps_figure
from lm_trials.probing.attention.flags import STATISTICS, AttentionArguments
from lm_trials.probing.attention.page import attention_page, page_model, write_page
from lm_trials.probing.attention.report import Results
from lm_trials.probing.attention.statistics import Measured
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.findings import write_findings
from lm_trials.probing.flags import SubjectArguments, TextArguments, probe_folder, short_names

PAGE = "attention.html"


def write_results(
    results: Results,
    which: SubjectArguments,
    texts: TextArguments,
    args: AttentionArguments,
    checks: Mapping[str, CaptureCheck],
    large: tuple[int, int] | None,
) -> list[dict[str, Any]]:
    """Write and show all that was found; returns the rows of the table.

    Args:
        large: layer and head that is drawn large.

    Raises:
        UsageError: where the folder cannot be written to.
    """
    folder, rows = probe_folder(which, "attention"), results.rows()
    tables = {"attention-leaders": results.leader_rows()}
    if args.all_checkpoints:
        tables["attention-steps"] = results.step_rows()
    if len(results.models) > 1:
        tables["attention-changes"] = results.change_rows()
    try:
        write_page(folder / PAGE, build_page(results, texts, args, large))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to ({error.strerror}); give another --output_dir") from None
    results.show()
    about = {
        "arguments": {**asdict(which), **asdict(texts), **asdict(args)},
        "stories": len(results.reading.documents),
        "tokens_of_the_maps": results.reading.tokens,
        "page": PAGE,
    }
    figures = build_figures(results, rows, tables, texts.dataset_name, large)
    write_findings(folder, "attention", rows, results.finding(args.statistic), about, figures, checks, tables)
    return rows


def build_figures(
    results: Results,
    rows: list[dict[str, Any]],
    tables: Mapping[str, list[dict[str, Any]]],
    dataset: str,
    large: tuple[int, int] | None,
) -> dict[str, Figure]:
    """Return the figures by file name: statistics, maps of each final model, one head large, and steps."""
    finals, tokens = results.finals, results.reading.tokens
    names = {name: STATISTICS[name].words for name in results.statistics}
    labels = {model.label for model in finals}
    of_finals = [row for row in rows if row["role"] == "control" or row["model"] in labels]
    over = f"heads on {len(results.reading.documents):,} stories of {short_names([dataset])[0]}"
    figures = {"attention": statistics_figure(of_finals, tables["attention-leaders"], names, f"Statistics of {over}")}
    for model in finals:
        name = "attention-maps" + (f"-{_in_a_file_name(model.label)}" if len(finals) > 1 else "")
        figures[name] = maps_figure(model.maps_LHTT, tokens, f"Attention of {model.label}")
    if large is not None:
        layer, head = large
        maps = {model.label: model.maps_LHTT[layer, head] for model in finals}
        whose = f" of {finals[0].label}" if len(finals) == 1 else ""
        figures["attention-head"] = head_figure(maps, tokens, f"Layer {layer}, head {head}{whose}")
    if tables.get("attention-steps"):
        figures["attention-steps"] = steps_figure(rows, tables["attention-steps"], names, f"Over training: {over}")
    return figures


def _in_a_file_name(label: str) -> str:
    return label.replace("/", "-")


def build_page(results: Results, texts: TextArguments, args: AttentionArguments, large: tuple[int, int] | None) -> str:
    """Return the page with the maps and numbers of every model; it begins with the head of the finding."""
    model = results.finals[-1]
    leader = results.leader(model, args.statistic)
    layer, head = large or (leader.layer, leader.head)
    layers, heads = model.maps_LHTT.shape[:2]
    statistics = [
        {
            "key": name,
            "name": STATISTICS[name].words,
            "unit": STATISTICS[name].unit,
            "even": results.even(name).estimate,
            "untrained": _bounds(results.untrained_leader(name)),
        }
        for name in results.statistics
    ]
    count = len(results.reading.documents)
    over = f"{count:,} stories of {short_names([texts.dataset_name])[0]}"
    sequences = f" and {args.induction_sequences} repeated sequences" if "induction" in results.statistics else ""
    names = ", ".join(model.label for model in results.finals)
    whose = "the first story" if args.text is None else "a text"
    return attention_page(
        f"Attention of {names}",
        results.reading.tokens,
        [_of_page(one, results.seed) for one in results.models],
        statistics,
        (layers, heads),
        over + sequences,
        {"model": len(results.models) - 1, "layer": layer, "head": head, "statistic": args.statistic},
        lede=f"Maps of {whose}, {len(results.reading.tokens)} tokens; numbers over {over}{sequences}.",
        footer="Each number is the mean over stories of a story's mean over its tokens but the first, which sees "
        "itself alone. Even is a head that looks evenly at all it sees. Untrained is the leading head of "
        f"models with random weights, and where that of one more would lie ({len(results.untrained)} drawn, 95 %), "
        "on the half of the stories that it was not chosen on. "
        "Weights in the maps are rounded: none is off by more than 0.4 %.",
    )


def _of_page(model: Measured, seed: int) -> dict[str, Any]:
    values = {}
    for name in model.statistics:
        values_NK = model.values(name).reshape(len(model.values(name)), -1)
        values[name] = [_bounds(mean) for mean in bootstrap_means(values_NK, STATISTICS[name].unit, seed)]
    return page_model(model.label, model.run, model.step, model.maps_LHTT, values)


def _bounds(estimate: Estimate) -> list[float]:
    return [estimate.estimate, estimate.lower, estimate.upper]
