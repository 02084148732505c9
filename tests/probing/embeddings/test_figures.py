"""Figures of embeddings."""

from lm_trials.probing.embeddings.figures import points_figure


def test_panels_share_their_limits():
    points = [
        {"model": model, "category": kind, "x": x, "y": -x, "step": step}
        for model, step, x in (("first", 10, 1.0), ("last", 20, 5.0))
        for kind in ("a", "b")
    ]
    axes = [axes for axes in points_figure(points, ["first", "last"], "title", ("x", "y")).axes if axes.get_visible()]
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_xlim()[1] > 5
    assert axes[1].get_title() == "last (step 20)"
    assert axes[1].collections[0].get_offsets().tolist() == [[5.0, -5.0]]
