"""The attention page: one HTML file with the maps and numbers of every head, to be looked at in a browser.

The file needs nothing but itself: no network, no library; its own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from lm_trials.files import finite

TEMPLATE = "page.html"
PLACE = re.compile(r"\{\{(\w+)\}\}")


def packed(maps_LHTT: np.ndarray) -> str:
    """Return maps as text: the square roots of the weights in bytes, of what each token sees, in base64.

    Square roots keep two digits of small weights too: a byte for the weight itself would make nothing of an even look
    at three hundred tokens.  No weight moves by more than 1/255.

    >>> packed(np.array([[[[1.0, 0.0], [0.25, 0.75]]]])), list(base64.b64decode(packed(np.array([[[[1.0]]]]))))
    ('/4Dd', [255])
    """
    rows, columns = np.tril_indices(maps_LHTT.shape[-1])
    roots = np.sqrt(np.clip(maps_LHTT[..., rows, columns].astype(np.float64), 0, 1))
    return base64.b64encode(np.rint(255 * roots).astype(np.uint8).tobytes()).decode("ascii")


def page_model(
    label: str, run: str, step: int | None, maps_LHTT: np.ndarray, values: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """Return what the page holds of a model: its maps, and of each statistic estimate, lower, upper of every head."""
    rounded = {name: [[_short(number) for number in head] for head in heads] for name, heads in values.items()}
    return {"label": label, "run": run, "step": step, "maps": packed(maps_LHTT), "values": rounded}


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def attention_page(
    title: str,
    tokens: Sequence[str],
    models: Sequence[Mapping[str, Any]],
    statistics: Sequence[Mapping[str, Any]],
    shape: tuple[int, int],
    texts: str,
    start: Mapping[str, Any],
    lede: str = "",
    footer: str = "",
) -> str:
    """Return the page.

    Args:
        title: of the page.
        tokens: of the text that the maps show; any text, it cannot end the page's script.
        models: as `page_model` makes them; those of one run are its checkpoints, in order.
        statistics: of each key, name, unit, even (a number) and untrained (estimate, lower, upper).
        shape: layers and heads.
        texts: what the statistics are over, such as "100 stories".
        start: what is shown first: model, layer, head, statistic.
        lede: what the page shows, below the title.
        footer: how it was measured.
    """
    layers, heads = shape
    data = {
        "tokens": list(tokens),
        "layers": layers,
        "heads": heads,
        "texts": texts,
        "statistics": list(statistics),
        "models": list(models),
        "start": dict(start),
    }
    parts = {"title": html.escape(title), "lede": html.escape(lede), "footer": html.escape(footer)}
    parts["data"] = _inside_script(finite(data))
    template = files("lm_trials.probing.attention").joinpath(TEMPLATE).read_text(encoding="utf-8")
    # In one pass: a text that holds `{{data}}` stays a text.
    return PLACE.sub(lambda match: parts[match[1]], template)


def _inside_script(data: Any) -> str:
    r"""Return JSON that no browser takes for the end of a script or for markup.

    >>> _inside_script("</script><!--&")
    '"\\u003c/script\\u003e\\u003c!--\\u0026"'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
