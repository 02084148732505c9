"""Figure of the bias probe: the three measures side by side, for each model and control."""

from __future__ import annotations

from matplotlib.figure import Figure

from lm_trials.probing.bias.report import SHUFFLED, named
from lm_trials.probing.tables import ProbeTable
from lm_trials.reporting.figure_style import COLORS, CONTROL_COLORS, draw_curve, dress, legend, new_figure, numbers


def bias_figure(rows: ProbeTable, title: str, measures: dict[str, str]) -> Figure:
    """Draw each measure on its own scale: points for what models write and prefer, decoding by layer.

    Shuffled labels are in the table alone; their bands would hide the others.

    Args:
        rows: of `bias.csv`.
        measures: the unit of each measure.
    """
    figure, panels = new_figure(title, len(measures), (3.8, 3.2))
    series = [one for one in rows.distinct("model", "attribute", "control") if one[2] != SHUFFLED]
    colors, greys = (iter(some * len(series)) for some in (COLORS, CONTROL_COLORS))
    shades = {one: next(greys if one[2] else colors) for one in series}
    for axes, (measure, unit) in zip(panels, measures.items(), strict=True):
        layers = [layer for layer in rows.where(measure=measure).distinct("layer") if layer is not None]
        for place, (one, color) in enumerate(shades.items()):
            model, attribute, control = one
            line = rows.where(model=model, attribute=attribute, control=control, measure=measure)
            label, control_line = named(one), control is not None
            if layers:
                draw_curve(axes, range(len(line)), line, color, label, control_line)
            elif line:
                (value,), (lower,), (upper,) = (numbers(line, name) for name in ("estimate", "lower", "upper"))
                axes.plot([value], [place], "s" if control_line else "o", color=color, label=label)
                axes.hlines(place, lower, upper, color=color, linewidth=1.6)
        if layers:
            axes.set_xticks(range(len(layers)), layers)
            axes.axhline(0, color="black", linewidth=0.8)
            dress(axes, measure, "layer", unit)
        else:
            axes.set_yticks([])
            axes.invert_yaxis()
            axes.axvline(0, color="black", linewidth=0.8)
            dress(axes, measure, unit, grid="x")
    legend(figure)
    return figure
