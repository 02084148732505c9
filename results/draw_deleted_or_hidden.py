"""Draw deleted_or_hidden.png from the table of deletion_recovery.md: what three arms write, and what a probe decodes.

python results/draw_deleted_or_hidden.py
"""

import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg

from lm_trials.reporting.figure_style import COLORS, dress, new_figure

HERE = Path(__file__).resolve().parent
ARMS = {"never saw twists": COLORS[0], "twists trained away": COLORS[1], "saw twists": COLORS[2]}
PANELS = {
    "writes a twist when asked": ("What they write", "share of stories with a twist when asked", (-0.05, 0.45)),
    "twist decoded from the final state": ("What a linear probe decodes", "balanced accuracy for twist", (0.7, 1.0)),
}


def row_of_table(start):
    """Return estimate, lower and upper of each arm from the row that starts with these words."""
    page = (HERE / "deletion_recovery.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    cells = [[float(number) for number in re.findall(r"-?\d+\.\d+", cell)] for cell in line.split("|")[2:5]]
    return [cell if len(cell) == 3 else cell * 3 for cell in cells]  # the arm whose seeds are all equal has no interval


def main():
    """Write the picture."""
    figure, panels = new_figure(
        "Models whose twists were trained away write almost none, but their hidden states predict one better than "
        "those of models that never saw any (means of 3 training seeds, 95 % intervals)",
        panels=2,
        size=(4.4, 1.8),
    )
    for axes, (start, (title, unit, limits)) in zip(panels, PANELS.items(), strict=True):
        for place, (arm, (estimate, lower, upper)) in enumerate(zip(ARMS, row_of_table(start), strict=True)):
            axes.hlines(place, lower, upper, color=ARMS[arm], linewidth=2)
            axes.plot(estimate, place, "o", color=ARMS[arm], markersize=7)
        dress(axes, title, unit, grid="x")
        axes.set(xlim=limits, ylim=(len(ARMS) - 0.5, -0.5))
        axes.set_yticks(range(len(ARMS)), ARMS if axes is panels[0] else [""] * len(ARMS))
    FigureCanvasAgg(figure).print_figure(HERE / "deleted_or_hidden.png", dpi=150)


if __name__ == "__main__":
    main()
