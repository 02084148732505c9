"""Curves over layers: what they show is what the rows say, controls apart from findings."""

import matplotlib as mpl
import pytest
from matplotlib.collections import PolyCollection

from lm_trials.reporting.figure_style import COLORS, CONTROL_COLORS, legend, new_figure
from lm_trials.reporting.layer_figures import curves_figure
from lm_trials.reporting.pictures import save_pictures


def row(layer, series, estimate, role="finding", panel="a", unit="accuracy", width=0.1):
    bounds = {"lower": estimate - width, "upper": estimate + width} if width else {"lower": None, "upper": ""}
    return {"layer": layer, "series": series, "role": role, "panel": panel, "estimate": estimate, "unit": unit} | bounds


def rows(*panels, layers=3):
    series = (("base", "finding"), ("tuned", "finding"), ("shuffled", "control"), ("majority", "control"))
    return [
        row(layer, name, layer / 10 + place / 100, role, panel)
        for panel in panels
        for layer in reversed(range(layers))
        for place, (name, role) in enumerate(series)
    ]


def drawn(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_lines_are_the_rows_in_the_order_of_the_layers_and_controls_are_dashed():
    figure = curves_figure(rows("a"), "what it is", xlabel="hidden layer (0 = embeddings)", chance=0.5)
    (axes,) = figure.axes
    lines = drawn(axes)
    chance = lines.pop("chance, 0.5")
    assert list(lines) == ["base", "tuned", "shuffled", "majority"]
    assert list(lines["tuned"].get_xdata()) == [0, 1, 2]
    assert list(lines["tuned"].get_ydata()) == pytest.approx([0.01, 0.11, 0.21])
    assert {name: line.get_linestyle() for name, line in lines.items()} == {
        "base": "-", "tuned": "-", "shuffled": "--", "majority": "--",
    }  # fmt: skip
    colors = [line.get_color() for line in lines.values()]
    assert colors == [*COLORS[:2], *CONTROL_COLORS[:2]]
    assert (set(chance.get_ydata()), chance.get_linestyle()) == ({0.5}, ":")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("hidden layer (0 = embeddings)", "accuracy")
    assert figure.get_suptitle() == "what it is"
    assert [text.get_text() for text in figure.legends[0].texts] == [*lines, "chance, 0.5"]
    assert len(curves_figure(rows("a"), "t").axes[0].lines) == 4  # without a chance there is no such line


def test_bands_are_the_intervals_and_no_interval_is_no_band():
    (axes,) = curves_figure([row(layer, "one", layer / 10) for layer in range(3)], "t").axes
    (band,) = [each for each in axes.collections if isinstance(each, PolyCollection)]
    corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert {(0, -0.1), (0, 0.1), (2, 0.1), (2, 0.3)} <= corners
    (bare,) = curves_figure([row(layer, "one", layer / 10, width=0) for layer in range(3)], "t").axes
    assert not bare.collections
    assert len(bare.lines) == 1


def test_panels_have_their_titles_units_and_numbers_where_nothing_stands_below():
    different = [*rows("a", "b", "c"), row(0, "base", 1.0, panel="d", unit="nats")]
    figure = curves_figure(different, "t", panel="panel")
    shown = figure.axes
    assert [axes.get_title() for axes in shown] == ["a", "b", "c", "d"]
    assert [axes.get_ylabel() for axes in shown] == ["accuracy"] * 3 + ["nats"]
    assert [axes.get_xlabel() for axes in shown] == ["", "layer", "layer", "layer"]
    figure.draw_without_rendering()
    numbered = [any(tick.label1.get_visible() for tick in axes.xaxis.get_major_ticks()) for axes in shown]
    assert numbered == [False, True, True, True]
    assert [text.get_text() for text in figure.legends[0].texts] == ["base", "tuned", "shuffled", "majority"]


def test_a_control_with_a_findings_name_says_so():
    both = [row(layer, "base", 0.5, role) for layer in range(2) for role in ("finding", "control")]
    lines = drawn(curves_figure(both, "t").axes[0])
    assert {name: line.get_linestyle() for name, line in lines.items()} == {"base": "-", "base (control)": "--"}


def test_steps_are_an_axis_too_and_a_missing_number_is_a_gap():
    points = [row(0, "a", 0.5) | {"step": step} for step in (0, 10, 400)]
    points[1] |= {"estimate": None, "lower": "", "upper": None}
    (axes,) = curves_figure(points, "t", x="step").axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0, 10, 400]
    assert [value == value for value in line.get_ydata()] == [True, False, True]
    assert axes.get_xlabel() == "step"


def test_no_rows_and_mixed_units_are_refused():
    with pytest.raises(ValueError, match="no rows to draw; give at least one"):
        curves_figure([], "t")
    mixed = [row(0, "a", 1.0), row(1, "a", 1.0, unit="nats")]
    with pytest.raises(ValueError, match=r"2 units \(accuracy, nats\) in one panel; use one panel for each unit"):
        curves_figure(mixed, "t")
    assert curves_figure([{**each, "panel": each["unit"]} for each in mixed], "t", panel="panel")


def test_the_same_rows_are_the_same_bytes(tmp_path):
    def written(name, *more):
        paths = save_pictures(curves_figure([*rows("a", "b"), *more], "t", panel="panel"), tmp_path / name / "curves")
        return [path.read_bytes() for path in paths]

    before = mpl.rcParams["svg.hashsalt"], mpl.rcParams["svg.fonttype"]
    first = written("first")
    assert written("second") == first
    assert [one == other for one, other in zip(written("third", row(3, "base", 0.9)), first, strict=True)] == [
        False
    ] * 2
    assert (mpl.rcParams["svg.hashsalt"], mpl.rcParams["svg.fonttype"]) == before


@pytest.mark.parametrize("panels", [1, 4])
def test_titles_and_legends_lie_within_the_figure_however_long_they_are(panels):
    name = "runs/filter-adv-Twist-specialise-Foreshadowing-llama-8m-seed-1234/checkpoint-2000"
    figure, drawn_on = new_figure(f"Validation loss of {name} and of {name}", panels)
    for axes in drawn_on:
        axes.plot([0, 1], label=name)
        axes.plot([1, 0], label=name * 2)
    legend(figure)
    figure.draw_without_rendering()
    for artist in (figure._suptitle, figure.legends[0]):
        box = artist.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height
    assert len(figure.get_suptitle().splitlines()) > 1
    plain = figure.suptitle(f"Validation loss of {name} and of {name}")
    assert plain.get_window_extent().x1 > figure.bbox.width or panels > 1  # in one line it would be cut
