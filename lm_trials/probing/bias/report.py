"""Report of the bias probe: its rows, the table on the terminal, and the finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lm_trials.estimates import bootstrap_mean, proportion
from lm_trials.probing.bias.measures import NORMED, distance, share_difference
from lm_trials.probing.findings import Finding
from lm_trials.probing.tables import ProbeTable, Row, interval, one_more
from lm_trials.stories.generated.pairing import Pairing

PAIRED, UNRELATED = "paired", "unrelated"
OVERT, PREFERENCE, DECODING = "overt", "preference", "decoding"
UNITS = {OVERT: "share of stories", PREFERENCE: "nats", DECODING: "standard deviations"}
SHUFFLED, UNTRAINED = "shuffled labels", "random weights"
OWN = {PAIRED: None, UNRELATED: UNRELATED}
"""The column `control` of what is measured of a model itself: the unrelated attributes are a control."""


def overt_rows(model: str, stories: Sequence[str], pairing: Pairing) -> ProbeTable:
    """Return the share of the stories in which the pairing occurs, the opposite occurs, and their difference."""
    rows = ProbeTable()
    for attribute in (PAIRED, UNRELATED):
        shown = [pairing.shown(story, attribute == UNRELATED) for story in stories]
        fits, opposite = shown.count(True), shown.count(False)
        about = _about(model, attribute, OVERT)
        rows.add(share_difference(fits, opposite, len(stories), UNITS[OVERT]), about)
        for name, count in (("fits", fits), ("opposite", opposite)):
            rows.add(proportion(count, len(stories), UNITS[OVERT]), about | {"measure": f"{OVERT}, {name}"})
    return rows


def preference_row(model: str, attribute: str, odds_C: np.ndarray, seed: int) -> ProbeTable:
    """Return the mean log odds ratio over contexts."""
    rows = ProbeTable()
    rows.add(bootstrap_mean(odds_C, UNITS[PREFERENCE], seed), _about(model, attribute, PREFERENCE))
    return rows


def decoding_rows(model: str, attribute: str, found: Mapping[str, np.ndarray], seed: int) -> ProbeTable:
    """Return for each layer how far apart the groups are, and the same of probes of shuffled labels."""
    rows = ProbeTable()
    for layer, projections_SCG in found.items():
        about = _about(model, attribute, DECODING) | {"layer": layer}
        own, *others = [distance(projections_CG, seed) for projections_CG in projections_SCG]
        rows.add(own, about)
        shuffled = one_more(np.array([other.estimate for other in others]), own.unit)
        rows.add(shuffled, about | {"role": "control", "control": SHUFFLED})
    return rows


def untrained_rows(draws: Sequence[ProbeTable], label: str) -> ProbeTable:
    """Return the mean of models with random weights, with the interval of one more such model."""
    rows = ProbeTable()
    for row in draws[0]:
        if row["control"] == OWN[row["attribute"]]:
            columns = {name: row[name] for name in ("attribute", "measure", "layer", "control")}
            values = np.array([draw.where(**columns)[0]["estimate"] for draw in draws])
            rows.add(one_more(values, row["unit"]), row | {"model": label, "role": "control", "control": UNTRAINED})
    return rows


def _about(model: str, attribute: str, measure: str) -> Row:
    role = "finding" if attribute == PAIRED else "control"
    about = {"model": model, "role": role, "attribute": attribute, "measure": measure}
    return about | {"layer": None, "control": OWN[attribute]}


def named(series: tuple[str | None, ...]) -> str:
    """Return the name of a model, attribute and control.

    >>> named(("demo", "unrelated", "unrelated")), named(("demo", "paired", None))
    ('demo, unrelated', 'demo, paired')
    """
    return ", ".join(dict.fromkeys(filter(None, series)))


def show_bias(rows: ProbeTable) -> None:
    """Print overt rate, preference and decoding after the final norm."""
    down = {
        f"{measure}, {UNITS[measure]}": {"measure": measure, "layer": layer}
        for measure, layer in ((OVERT, None), (PREFERENCE, None), (DECODING, NORMED))
    }
    series = rows.distinct("model", "attribute", "control")
    across = {named(one): dict(zip(("model", "attribute", "control"), one, strict=True)) for one in series}
    rows.show("bias: first group less second [95 %]", "measure", down, across)


def finding_of(rows: ProbeTable, model: str) -> Finding:
    """Return the three measures of a model, and of its unrelated attributes."""

    def sentence(attribute: str) -> str:
        overt, preference, decoding = (
            rows.find(model=model, attribute=attribute, control=OWN[attribute], measure=measure, layer=layer)
            for measure, layer in ((OVERT, None), (PREFERENCE, None), (DECODING, NORMED))
        )
        where = "before a paired attribute" if attribute == PAIRED else "elsewhere"
        return (
            f"{attribute} attributes fit their group in {interval(overt)} more of the stories of {model}; "
            f"log odds ratio of its probabilities {interval(preference)} nats; {where} its states show the group by "
            f"{interval(decoding)} standard deviations"
        )

    return Finding(sentence(PAIRED), sentence(UNRELATED))
