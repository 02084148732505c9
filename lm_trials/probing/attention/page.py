"""The attention page: one HTML file with the maps and statistics of every head.

It needs no network and no library; its content security policy forbids loading anything.
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
    """Return the lower triangles of maps as text: the square roots of the weights as bytes, in base64.

    Square roots keep two digits of small weights: as plain bytes, even attention to 300 tokens would be 0.  No weight
    changes by more than 1/255.

    >>> packed(np.array([[[[1.0, 0.0], [0.25, 0.75]]]])), list(base64.b64decode(packed(np.array([[[[1.0]]]]))))
    ('/4Dd', [255])
    """
    rows, columns = np.tril_indices(maps_LHTT.shape[-1])
    roots = np.sqrt(np.clip(maps_LHTT[..., rows, columns].astype(np.float64), 0, 1))
    return base64.b64encode(np.rint(255 * roots).astype(np.uint8).tobytes()).decode("ascii")


def page_model(
    label: str, run: str, step: int | None, maps_LHTT: np.ndarray, values: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """Return a model's part of the page: its maps, and for each statistic estimate, lower, upper of every head."""
    rounded = {name: [[float(f"{number:.4g}") for number in head] for head in heads] for name, heads in values.items()}
    return {"label": label, "run": run, "step": step, "maps": packed(maps_LHTT), "values": rounded}


def attention_page(title: str, data: Mapping[str, Any], lede: str = "", footer: str = "") -> str:
    """Return the page.

    Args:
        data: `tokens` of the maps (escaped, so no text can end the page's script); `layers` and `heads`; `models` from
            `page_model`, those of one run its checkpoints in order; `texts`, what the statistics are over;
            `statistics`, for each its key, name, unit, even (a number) and untrained (estimate, lower, upper); `start`,
            the model, layer, head and statistic that are shown first.
        lede, footer: what the page shows, and how it was measured.
    """
    parts = {name: html.escape(text) for name, text in (("title", title), ("lede", lede), ("footer", footer))}
    parts["data"] = _inside_script(finite(data))
    template = files("lm_trials.probing.attention").joinpath(TEMPLATE).read_text(encoding="utf-8")
    # In one pass, so that a text that contains `{{data}}` is not replaced.
    return PLACE.sub(lambda match: parts[match[1]], template)


def _inside_script(data: Any) -> str:
    r"""Return JSON that no browser reads as the end of a script or as markup.

    >>> _inside_script("</script><!--&")
    '"\\u003c/script\\u003e\\u003c!--\\u0026"'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
