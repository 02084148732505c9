"""The figures of the saturation probe: each metric on its own scale, and all scaled to 0 and 1."""

import numpy as np
import pytest

from lm_trials.probing.saturation.figures import curves_figure, minmax_figure

VALUES = {"words": (10.0, 40.0, 30.0), "gunning_fog": (9.0, 5.0, 4.0), "flagged_words": (0.0, 0.0, 0.0)}


def rows():
    units = {"words": "words", "gunning_fog": "grade", "flagged_words": "share of words"}
    about = {"model": "a", "slice": "all"}
    return [
        {**about, "side": side, "metric": metric, "update": update, "unit": units[metric], "estimate": value}
        | {"lower": value - 1, "upper": value + 1}
        for metric, values in VALUES.items()
        for side in ("input", "output")
        for update, value in zip((0, 1, 64), values, strict=True)
    ]


def test_input_and_output_are_side_by_side_with_the_step_and_without_what_does_not_vary():
    step = {"model": "a", "side": "output", "metric": "words", "changed": True, "censored": False, "estimate": 1.0}
    figure = curves_figure(rows(), [step, {**step, "metric": "gunning_fog", "censored": True}])
    assert [axes.get_title() for axes in figure.axes] == [
        "in: words",
        "out: words",
        "in: gunning fog",
        "out: gunning fog",
    ]
    assert "flagged words" in figure.get_suptitle()
    assert [len(axes.lines) for axes in figure.axes] == [1, 2, 1, 1]
    assert list(figure.axes[1].lines[1].get_xdata()) == [1.0, 1.0]
    assert list(figure.axes[2].lines[0].get_ydata()) == list(VALUES["gunning_fog"])
    assert all(axes.collections for axes in figure.axes)  # bands


def test_each_curve_is_scaled_by_its_own_range_and_constants_are_left_out():
    figure = minmax_figure(rows())
    assert [axes.get_title() for axes in figure.axes] == ["a: in", "a: out"]
    for axes in figure.axes:
        scaled = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
        assert scaled.keys() == {"words", "gunning fog"}
        assert scaled["words"].tolist() == pytest.approx([0, 1, 2 / 3])
        assert scaled["gunning fog"].tolist() == pytest.approx([1, 0.2, 0])
