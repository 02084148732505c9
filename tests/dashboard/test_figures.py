"""Figures are drawn from rows: what is in their traces, and that they are JSON that Plotly reads."""

import json

import numpy as np
import pytest

from lm_trials.dashboard import figures

ROW = {"name": "a", "step": 1, "estimate": 2.0, "lower": 1.5, "upper": 2.5}


def traces(figure):
    json.loads(figure.to_json())
    return {(trace.name, trace.fill): trace for trace in figure.data}


def test_a_curve_has_its_band_of_its_colour():
    rows = [ROW, ROW | {"step": 2, "estimate": 1.0, "lower": 0.5, "upper": 1.5}, ROW | {"name": "b", "lower": None}]
    found = traces(figures.curves_figure(rows, "nats per token"))
    assert set(found) == {("a", "toself"), ("a", None), ("b", None)}  # no interval, no band
    assert found["a", None].y.tolist() == [2, 1]
    assert found["a", "toself"].y.tolist() == [1.5, 0.5, 1.5, 2.5]  # there and back
    assert found["a", None].text == ("2 [1.5, 2.5]", "1 [0.5, 1.5]")
    assert found["b", None].text == ("2",)
    assert found["a", None].line.color != found["b", None].line.color


@pytest.mark.parametrize(("steps", "kind"), [((1, 2, 3), None), ((1, 2, 4, 64), "log"), ((0, 1, 64), None)])
def test_a_ladder_of_updates_has_a_logarithmic_axis(steps, kind):
    figure = figures.curves_figure([ROW | {"step": step} for step in steps], "x")
    assert figure.layout.xaxis.type == kind


def test_input_and_output_have_a_panel_each_or_one_scale():
    sides = {"input": 0, "output": 100}
    rows = [ROW | {"side": side, "step": step, "estimate": sides[side] + step} for side in sides for step in (1, 3)]
    own = figures.sides_figure(rows, "words", {"input": 3.0, "output": float("nan")})
    assert {trace.yaxis for trace in own.data} == {"y", "y2"}
    assert [axis.title.text for axis in (own.layout.yaxis, own.layout.yaxis2)] == ["input: words", "output: words"]
    assert len(own.layout.shapes) == 1  # the saturation step of one side
    scaled = figures.sides_figure(rows, "words", {}, scaled=True)
    lines = [trace for trace in scaled.data if trace.fill is None]
    assert [line.y.tolist() for line in lines] == [[0, 1], [0, 1]]
    assert {trace.yaxis for trace in scaled.data} == {"y"}


def test_attention_shows_the_weights_as_percents_and_roots():
    weights_TT = np.array([[1.0, 0.0], [0.25, 0.75]])
    (map_,) = figures.attention_figure(weights_TT, ["<s>", "One"]).data
    assert map_.z.tolist() == [[255, 0], [128, 221]]
    assert map_.customdata.tolist() == [[100, 0], [25, 75]]
    assert map_.colorscale[0][1] == "rgba(0, 0, 0, 0)"
    large = figures.attention_figure(np.eye(100), ["x"] * 100).data[0]
    assert large.z.shape == (64, 64)


def test_embeddings_show_one_checkpoint_on_limits_of_all():
    points_CVK = np.stack([np.zeros((6, 2)), np.arange(12).reshape(6, 2)]).astype(float)
    figure = figures.embeddings_figure(points_CVK, np.array([0.5, 0.25]), 1, list("abcdef"), [0, 8])
    *ways, cloud = figure.data
    assert [way.name for way in ways] == list("fedcb")  # farthest first
    assert ways[0].x.tolist() == [0, 10]
    assert cloud.y.tolist() == [1, 3, 5, 7, 9, 11]
    first = figures.embeddings_figure(points_CVK, np.array([0.5, 0.25]), 0, list("abcdef"), [0, 8])
    assert first.layout.xaxis.range == figure.layout.xaxis.range
    assert figure.layout.xaxis.title.text == "axis 1 (50% of the variance)"


def test_a_forest_has_the_claimed_range_and_zero_in_its_panels():
    row = {"contrast": "a < b", "role": "primary", "unit": "nats", "estimate": 0.3, "lower": 0.2, "upper": 0.4}
    row |= {"result": "holds", "above": 0.1, "below": ""}
    other = row | {
        "unit": "words",
        "contrast": "c",
        "role": "control",
        "lower": "",
        "upper": "",
        "above": "",
        "below": -1,
    }
    values = [{"contrast": "a < b", "seed": seed, "difference": 0.3 + seed / 10} for seed in (0, 1)]
    figure = figures.forest_figure([row, other], values)
    json.loads(figure.to_json())
    claimed, invalid = figure.layout.shapes
    low, high = figure.layout.xaxis.range
    assert low < 0
    assert (claimed.x0, claimed.x1) == (0.1, high)
    assert invalid.x1 == -1
    assert invalid.x0 < -1
    assert claimed.fillcolor != invalid.fillcolor
    seeds, estimate, _, of_control = figure.data
    assert list(seeds.x) == [0.3, 0.4]
    assert list(estimate.x) == [0.3]
    assert estimate.error_x.visible
    assert not of_control.error_x.visible
    assert figure.layout.annotations[0].text == "a &lt; b (primary): holds"


def test_a_metric_has_its_distribution_and_the_records_of_the_update():
    bars, marks = figures.metric_figure(np.array([1.0, 1.0, 2.0, np.nan]), np.array([2.0, np.nan]), "words").data
    assert bars.y.sum() == pytest.approx(1)
    assert marks.x.tolist() == [2]
