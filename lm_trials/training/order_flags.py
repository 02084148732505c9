"""Which records a training reads, and in which order: the flags of `lm-trials train` and `tune`; no torch."""

from __future__ import annotations

import json
import math
import operator
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from lm_trials.console import UsageError
from lm_trials.flags import option, parse_mapping, read_yaml

if TYPE_CHECKING:
    import numpy as np

COMPARED = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
OWN_METRIC = "tokens"
"""The metric that needs no table: the tokens of a record, with its marks."""


@dataclass(kw_only=True)
class RecordOrder:
    """A filter and an order of records."""

    flag_group: ClassVar[str] = "data"

    order_by: str | None = option(
        None, filled=True, help="Sort records by a metric of `lm-trials prepare metadata`, or by tokens."
    )
    order: Literal["ascending", "descending", "random", "file"] | None = option(
        None,
        needs={"ascending": "order_by", "descending": "order_by"},
        not_with={"random": "order_by", "file": "order_by"},
        help="ascending or descending, with --order_by; random: by --data_seed; file: as stored. Default: ascending "
        "with --order_by, else random.",
    )
    order_window: int | None = option(
        None, least=2, needs="order_by", help="Sort each N records of the random order by themselves. Default: all."
    )
    keep: str | None = option(
        None, filled=True, help='Read only records with METRIC>VALUE, or <, >=, <=; "A>1 and B<=2" for several.'
    )

    def conditions(self) -> list[Condition]:
        """Read `--keep` (UsageError: see `Condition.read`)."""
        return [Condition.read(text) for text in re.split(r"\s+and\s+", self.keep)] if self.keep else []

    @property
    def metrics(self) -> list[str]:
        """The metrics that it reads, each once."""
        names = [*([self.order_by] if self.order_by else []), *(each.metric for each in self.conditions())]
        return list(dict.fromkeys(names))

    def settle(self) -> None:
        """Check `keep`, and write what was not given or in other words, in place, so that one order is one arm."""
        self.conditions()
        self.keep = re.sub(r"\s*(>=|<=|>|<)\s*", r"\1", " ".join(self.keep.split())) if self.keep else None
        if self.order_by:
            self.order = self.order or "ascending"
        elif self.order == "random":
            self.order = None

    def describe(self) -> str:
        """Return the order and the filter in words."""
        words = {None: "random", "file": "as stored"}.get(self.order, f"by {self.order_by}, {self.order}")
        if self.order_window:
            words += f", within windows of {self.order_window:,} of the random order"
        return words + (f"; only {self.keep}" if self.keep else "")


class Condition(NamedTuple):
    """One condition of `--keep`; nan meets none.

    >>> import numpy as np
    >>> Condition.read("words >= 3").met(np.array([2, 3, np.nan]))
    array([False,  True, False])
    """

    metric: str
    comparison: str
    value: float

    @classmethod
    def read(cls, text: str) -> Condition:
        """Read METRIC>VALUE.

        Raises:
            UsageError: for anything else.
        """
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+?)\s*", text)
        try:
            if not found or not math.isfinite(float(found[3])):
                raise ValueError
        except ValueError:
            raise UsageError(
                f"--keep {text} is not METRIC>VALUE (or <, >=, <=) with a number; give, for example, words>=50"
            ) from None
        return cls(found[1], found[2], float(found[3]))

    def met(self, values_N: np.ndarray) -> np.ndarray:
        """Return the (N,) mask of the values that meet it."""
        return COMPARED[self.comparison](values_N, self.value)


@dataclass(kw_only=True)
class PhaseOrder(RecordOrder):
    """One phase of a schedule: its updates or passes, as `1-100` or `101-`, counted from 1."""

    updates: str | None = option(None, not_with="passes", help="Updates of the phase.")
    passes: str | None = option(None, help="Passes of the phase.")
    data_mix: str | None = option(None, help="Shares of a mixture's parts in this phase; 0 leaves a part out.")

    @property
    def unit(self) -> Literal["updates", "passes"]:
        """What the phase counts in."""
        return "passes" if self.updates is None else "updates"

    @property
    def span(self) -> tuple[int, int | None]:
        """The first and the last update or pass; None: to the end of the run."""
        text = str(getattr(self, self.unit))
        found = re.fullmatch(r"(\d+)(-(\d*))?", text)
        first, last = (int(found[1]), found[3] if found[2] else found[1]) if found else (0, None)
        if not first or (last and int(last) < first):
            raise UsageError(f"{self.unit} {text} is no range; write, for example, 1-100, or 101- for all that follow")
        return first, int(last) if last else None

    def describe(self) -> str:
        """Return the order, the filter and the shares in words."""
        return super().describe() + (f"; data_mix {self.data_mix}" if self.data_mix else "")


@dataclass(kw_only=True)
class DataOrdering(RecordOrder):
    """The flags of a training."""

    order_schedule: str | None = option(
        None,
        filled=True,
        not_with=("order_by", "order", "order_window", "keep"),
        why="each phase of the schedule has its own",
        help="YAML file: order, filter and shares of a mixture by updates or passes; see docs/training.md.",
    )

    @property
    def phases(self) -> list[PhaseOrder]:
        """The phases of `--order_schedule`, or the flags as one; empty where the records are in the random order."""
        if self.order_schedule:
            return read_schedule(self.order_schedule)
        own = {name: value for name, value in asdict(self).items() if name in RecordOrder.__dataclass_fields__}
        return [PhaseOrder(updates="1-", **own)] if any(own.values()) else []

    @property
    def metrics(self) -> list[str]:
        """The metrics that its phases read, each once."""
        return list(dict.fromkeys(name for phase in self.phases for name in phase.metrics))


def check_order(flags: DataOrdering) -> None:
    """Check the flags, and write their defaults and the content of the schedule into them, in place.

    Raises:
        UsageError: for a wrong condition or schedule.
    """
    flags.settle()
    if flags.order_schedule:
        phases = [{name: value for name, value in asdict(phase).items() if value is not None} for phase in flags.phases]
        flags.order_schedule = json.dumps(phases)


def read_schedule(given: str) -> list[PhaseOrder]:
    """Read a schedule: a YAML file with a list of phases, or the list itself as JSON.

    Raises:
        UsageError: for anything else; for phases that overlap or leave a gap.

    >>> given = '[{"updates": "1-5", "order_by": "tokens"}, {"updates": "6-"}]'
    >>> [(phase.span, phase.describe()) for phase in read_schedule(given)]
    [((1, 5), 'by tokens, ascending'), ((6, None), 'random')]
    """
    inline = given.startswith("[")
    try:
        entries = json.loads(given) if inline else read_yaml(Path(given))
        if not isinstance(entries, list) or not entries:
            raise UsageError("it must be a list of phases such as `- updates: 1-100`")
        phases = [_phase(number, entry) for number, entry in enumerate(entries, start=1)]
        _check_spans(phases)
    except (UsageError, json.JSONDecodeError) as error:
        raise UsageError(f"--order_schedule {given:.60}: {error}") from None
    return phases


def _phase(number: int, entry: Any) -> PhaseOrder:
    try:
        if not isinstance(entry, dict) or not {"updates", "passes"} & set(entry):
            raise UsageError("it has neither updates nor passes; write, for example, updates: 1-100")
        phase = parse_mapping(entry, PhaseOrder)
        phase.settle()
    except UsageError as error:
        raise UsageError(f"phase {number}: {error}") from None
    return phase


def _check_spans(phases: list[PhaseOrder]) -> None:
    """Refuse phases that do not follow each other without a gap."""
    following = 1
    for number, phase in enumerate(phases, start=1):
        first, last = phase.span
        if phase.unit != phases[0].unit:
            raise UsageError(f"phase {number} counts {phase.unit} and phase 1 {phases[0].unit}; count one of them")
        if first > following:
            missing = f"{following}" if first == following + 1 else f"{following} to {first - 1}"
            raise UsageError(f"no phase has {phase.unit} {missing}; let phase {number} begin at {following}")
        if first < following:
            raise UsageError(f"phases {number - 1} and {number} overlap; let phase {number} begin at {following}")
        if last is None and number < len(phases):
            raise UsageError(f"phase {number} has no end and is not the last; write {phase.unit}: {first}-LAST")
        following = (last or 0) + 1


def check_covers(phases: list[PhaseOrder], reached: int) -> None:
    """Check that a run whose last update or pass is `reached` ends in the last phase of a schedule.

    Raises:
        UsageError: for a run that ends before it, or goes on after it.
    """
    (first, last), unit = phases[-1].span, phases[-1].unit
    if reached < first or (last is not None and reached > last):
        covered = f"begins at {first:,}" if reached < first else f"ends at {last:,}"
        raise UsageError(
            f"--order_schedule or --inject: its last phase {covered}, and the {unit} of the run end at "
            f"{reached:,}; change the schedule, or the length of the run"
        )
