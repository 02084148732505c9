"""Figures of a trial: what is drawn where, from the rows of its tables."""

import math

import pytest

from lm_trials.reporting.trial_figures import curves_figure, forest_figure
from lm_trials.trials.trial_report import _svg

ROW = {"contrast": "a - b", "role": "primary", "unit": "nats", "result": "holds", "estimate": 0.3, "lower": 0.1,
       "upper": 0.5, "above": 0.05, "below": math.inf}  # fmt: skip
CONTROL = ROW | {
    "contrast": "c",
    "role": "control",
    "estimate": 0.0,
    "lower": -0.1,
    "upper": 0.1,
    "result": "no effect",
}
POINTS = [{"contrast": "a - b", "seed": seed // 2, "difference": 0.2 + 0.1 * (seed // 2)} for seed in range(4)]


def test_each_contrast_has_its_interval_its_seeds_and_its_claim():
    (axes,) = forest_figure([ROW, CONTROL], POINTS).axes
    lines = [list(line.get_xdata()) for line in axes.get_lines()]
    assert [0.1, 0.5] in lines
    assert [0.2, pytest.approx(0.3)] in lines  # one point for each root seed, not for each run
    assert [text.get_text() for text in axes.texts] == ["a - b (primary): holds", "c (control): no effect"]
    claim, against = (bar.get_paths()[0].vertices[:, 0] for bar in axes.collections)
    assert claim.min() == against.min() == 0.05
    assert claim.max() == axes.get_xlim()[1]


def test_units_have_panels_of_their_own_and_a_bound_ends_at_the_edge():
    bound = ROW | {"unit": "log2 of updates", "upper": math.inf}
    first, second = forest_figure([ROW, bound], []).axes
    assert (first.get_xlabel(), second.get_xlabel()) == ("nats", "log2 of updates")
    interval = next(line for line in second.get_lines() if line.get_xdata()[0] == 0.1)
    assert interval.get_xdata()[1] == second.get_xlim()[1]


def test_a_contrast_without_a_value_is_not_drawn():
    (axes,) = forest_figure([ROW, CONTROL | {"estimate": math.nan, "unit": ""}], []).axes
    assert len(axes.texts) == 1


def test_curves_have_a_logarithmic_axis_where_evaluations_are_geometric():
    row = {"stage": "s", "metric": "eval_loss", "estimate": 2.0, "lower": 1.9, "upper": 2.1, "unit": "nats"}
    for steps, scale in (((0, 1, 2, 4, 8, 16), "symlog"), ((0, 10, 20, 30), "linear")):
        rows = [{**row, "arm": arm, "step": step} for arm in "ab" for step in steps]
        (axes,) = curves_figure(rows).axes
        assert axes.get_xscale() == scale
        assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
        assert len(axes.collections) == 2  # the bands


def test_a_picture_of_the_page_is_the_same_each_time_and_takes_the_colour_of_its_text():
    first, second = (_svg(forest_figure([ROW], POINTS), "forest") for _ in range(2))
    assert first == second != _svg(forest_figure([CONTROL], POINTS), "forest")
    assert "currentColor" in first
    assert "#000000" not in first
    assert "#ffffff" not in first
