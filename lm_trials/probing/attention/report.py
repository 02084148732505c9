"""Report of the attention probe: the selected heads beside their controls, what changed, and the files written.

The largest of many heads is large by selection alone.  So a head is selected on one half of the stories and reported on
the other, and the control has the same choice: the largest head of each of several untrained models.  Weights of a
random model do not vary by story, so an interval over stories alone always separates its largest head from even
attention.

Shape suffixes: N = stories or sequences, L = layers, H = heads, S = statistics, D = untrained models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.figure import Figure

from lm_trials.console import show_table
from lm_trials.estimates import NO_INTERVAL, Estimate, bootstrap_mean, bootstrap_means, interval_text, scale_of
from lm_trials.files import write_file
from lm_trials.probing.attention.figures import head_figure, maps_figure, statistics_figure, steps_figure
from lm_trials.probing.attention.flags import OF_STORIES, STATISTICS, AttentionArguments
from lm_trials.probing.attention.page import attention_page, page_model
from lm_trials.probing.attention.statistics import AttentionTexts, Measured, even_statistics
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.findings import Finding, file_name, write_findings
from lm_trials.probing.flags import SubjectArguments, TextArguments, probe_folder, short_names
from lm_trials.probing.tables import ProbeTable, Row, interval, one_more, sign, widened

UNTRAINED, EVEN, UNREPEATED, ALL_HEADS = "untrained", "even attention", "not repeated", "all heads"
PAGE = "attention.html"
CAPTION = (
    "head: layer.head, selected on one half of the stories, reported on the other. untrained: what the head selected "
    "in one more model with random weights reaches (95 %). beyond: all controls."
)


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split stories at random into those that a head is selected on and those that it is reported on.

    >>> [half.tolist() for half in halves(5, seed=0)]
    [[0, 3], [1, 2, 4]]
    """
    order = np.random.default_rng([seed, count]).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def chosen_head(values_NLH: np.ndarray, most: bool) -> tuple[int, int]:
    """Return layer and head with the largest mean, or the smallest.

    >>> chosen_head(np.array([[[0.1, 0.2], [0.4, 0.3]]]), most=True)
    (1, 0)
    """
    means_LH = values_NLH.mean(axis=0)
    layer, head = np.unravel_index((means_LH if most else -means_LH).argmax(), means_LH.shape)
    return int(layer), int(head)


@dataclass(frozen=True)
class Control:
    """A control on the same stories: its value, and the head's difference from it, paired by story."""

    value: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Leader:
    """The head of a model with the most (or least) of a statistic, on held-out stories."""

    model: Measured
    statistic: str
    layer: int
    head: int
    estimate: Estimate
    controls: dict[str, Control]

    @property
    def within(self) -> list[str]:
        """The controls that it is not beyond: the difference is not significant, or has the wrong sign."""
        wanted = 1 if STATISTICS[self.statistic].most else -1
        # A head of random weights differs from even attention with certainty; with one random model and an interval
        # over stories, 40 of 40 draws gave a false finding. Hence several models and a prediction interval.
        return [name for name, control in self.controls.items() if sign(control.difference) != wanted]

    @property
    def rows(self) -> ProbeTable:
        """The head, then each of its controls."""
        model, rows = self.model, ProbeTable()
        about = {"model": model.label, "run": model.run, "step": model.step, "statistic": self.statistic}
        head = {"role": "finding", "layer": self.layer, "head": self.head}
        beyond = {"beyond_controls": "no" if self.within else "yes"} if self.controls else {}
        rows.add(self.estimate, about | head, seed=model.seed, **beyond)
        for name, control in self.controls.items():
            apart = control.difference
            numbers = {"difference": apart.estimate, "difference_lower": apart.lower, "difference_upper": apart.upper}
            rows.add(control.value, about | {"role": "control", "control": name}, **numbers)
        return rows

    def __str__(self) -> str:
        return f"layer {self.layer} head {self.head}"


@dataclass(frozen=True)
class Results:
    """All measurements, and what follows from them.

    Attributes:
        models: the models, in order.
        untrained: models of the same shape with random weights.
        texts: what all of them read.
        seed: of the halves and the intervals.
    """

    models: Sequence[Measured]
    untrained: Sequence[Measured]
    texts: AttentionTexts
    seed: int

    @cached_property
    def finals(self) -> list[Measured]:
        """The last model of each run; without checkpoints, all models."""
        return list({model.run: model for model in self.models}.values())

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics of each head."""
        return self.models[0].statistics

    def even_values(self, statistic: str) -> np.ndarray:
        """Return the statistic of even attention on each text, -> (N,)."""
        if statistic != "induction":
            place = OF_STORIES.index(statistic)
            return np.array([even_statistics(len(ids_T))[place] for ids_T in self.texts.documents])
        assert self.texts.repeats is not None
        return np.full(len(self.texts.repeats.repeated), self.texts.repeats.even)

    def even(self, statistic: str) -> Estimate:
        """Return the statistic of even attention over all texts."""
        return self._mean(self.even_values(statistic), STATISTICS[statistic].unit)

    def _mean(self, values_N: np.ndarray, unit: str, difference: bool = False) -> Estimate:
        return bootstrap_mean(values_N, unit, self.seed, scale=scale_of(unit, difference))

    def untrained_values(self, statistic: str) -> np.ndarray:
        """Return the statistic of the selected head of each untrained model on held-out texts, -> (D, N)."""
        rows = []
        for model in self.untrained:
            values_NLH = model.values(statistic)
            choose, report = halves(len(values_NLH), self.seed)
            layer, head = chosen_head(values_NLH[choose], STATISTICS[statistic].most)
            rows.append(values_NLH[report, layer, head])
        return np.stack(rows)

    def untrained_leader(self, statistic: str) -> Estimate:
        """Return where the selected head of one more untrained model would lie."""
        unit = STATISTICS[statistic].unit
        return one_more(self.untrained_values(statistic).mean(axis=1), unit, scale_of(unit))

    def leader(self, model: Measured, statistic: str, head: tuple[int, int] | None = None) -> Leader:
        """Select a model's head, or take the given one, and report it beside the controls."""
        about, values_NLH = STATISTICS[statistic], model.values(statistic)
        choose, report = halves(len(values_NLH), self.seed)
        layer, number = head or chosen_head(values_NLH[choose], about.most)
        values_N = values_NLH[report, layer, number]

        def beside(control_N: np.ndarray) -> Control:
            apart = self._mean(values_N - control_N, about.unit, difference=True)
            return Control(self._mean(control_N, about.unit), apart)

        # Untrained models vary by their weights and by the stories, so both uncertainties are added.
        random_DN, one = self.untrained_values(statistic), self.untrained_leader(statistic)
        most = 1.0 if scale_of(about.unit) == "logit" else math.inf
        apart = widened(beside(random_DN.mean(axis=0)).difference, one.upper - one.estimate, most)
        controls = {UNTRAINED: Control(one, apart), EVEN: beside(self.even_values(statistic)[report])}
        if statistic == "induction":
            assert model.unrepeated_NLH is not None
            controls[UNREPEATED] = beside(model.unrepeated_NLH[report, layer, number])
        return Leader(model, statistic, layer, number, self._mean(values_N, about.unit), controls)

    @cached_property
    def leaders(self) -> list[Leader]:
        """The selected head of every model for each statistic."""
        return [self.leader(model, statistic) for model in self.models for statistic in self.statistics]

    @cached_property
    def changes(self) -> list[Leader]:
        """Of every other model and each statistic, the head that changed most since the first model.

        Its control is the mean change of all heads, each in its direction on the choosing half: training changes every
        head, so a head is notable only where it changed more.
        """
        found = []
        for model in self.models[1:]:
            for statistic in self.statistics:
                about = STATISTICS[statistic]
                change_NLH = model.values(statistic) - self.models[0].values(statistic)
                choose, report = halves(len(change_NLH), self.seed)
                layer, head = chosen_head(np.abs(change_NLH[choose].mean(axis=0))[None], most=True)
                signs_LH = np.sign(change_NLH[choose].mean(axis=0))
                own_NLH = change_NLH[report] * signs_LH
                all_N = own_NLH.mean(axis=(1, 2))
                further_N = (own_NLH[:, layer, head] - all_N) * (1 if about.most else -1)
                control = Control(*(self._mean(some_N, about.unit, difference=True) for some_N in (all_N, further_N)))
                change = self._mean(change_NLH[report, layer, head], about.unit, difference=True)
                found.append(Leader(model, statistic, layer, head, change, {ALL_HEADS: control}))
        return found

    def rows(self) -> ProbeTable:
        """Return the table: each statistic of each head on all stories, and the controls."""
        rows = ProbeTable()

        def add_heads(model: Measured, role: str, label: str) -> None:
            measured = [(name, model.values(name), role, label) for name in model.statistics]
            if model.unrepeated_NLH is not None:
                measured.append(("induction", model.unrepeated_NLH, "control", f"{label}, {UNREPEATED}"))
            for statistic, values_NLH, own_role, name in measured:
                about = {"model": name, "role": own_role, "run": model.run, "step": model.step}
                estimates = self._of_heads(values_NLH, statistic)
                for (layer, head), estimate in zip(np.ndindex(values_NLH.shape[1:]), estimates, strict=True):
                    where = {"layer": layer, "head": head, "statistic": statistic}
                    rows.add(estimate, about | where, seed=model.seed)

        for model in self.models:
            add_heads(model, "finding", model.label)
        for statistic in self.statistics:
            rows.add(self.even(statistic), {"model": EVEN, "role": "control", "statistic": statistic})
        for number, model in enumerate(self.untrained, start=1):
            add_heads(model, "control", f"{UNTRAINED} {number}")
        return rows

    def _of_heads(self, values_NLH: np.ndarray, statistic: str) -> list[Estimate]:
        unit = STATISTICS[statistic].unit
        return bootstrap_means(values_NLH.reshape(len(values_NLH), -1), unit, self.seed, scale=scale_of(unit))

    def step_rows(self) -> ProbeTable:
        """Return, for each run, the head selected at the end at every step, with its controls."""
        rows = ProbeTable()
        for final in self.finals:
            by_step = {m.step: m for m in reversed(self.models) if m.run == final.run and m.step is not None}
            for statistic in self.statistics:
                end = self.leader(final, statistic)
                for step in sorted(by_step):
                    rows += self.leader(by_step[step], statistic, (end.layer, end.head)).rows
        return rows

    def finding(self, statistic: str) -> Finding:
        """Return the selected heads for one statistic, and what changed most of it, as sentences."""
        about = STATISTICS[statistic]
        leaders = [leader for leader in self.leaders if leader.statistic == statistic and leader.model in self.finals]
        told, beside = [], []
        for leader in leaders:
            label, heads = leader.model.label, int(np.prod(leader.model.maps_LHTT.shape[:2]))
            value = f"the {'most' if about.most else 'least'} {about.words}, {interval(leader.estimate)}"
            told.append(
                f"{label}: no significant head; {leader}, with {value}, is not beyond {', '.join(leader.within)}"
                if leader.within
                else f"{label}: of {heads} heads {leader} has {value}"
            )
            if UNREPEATED in leader.controls:
                alone = interval(leader.controls[UNREPEATED].value)
                beside.append(f"on sequences that are not repeated, {label}'s head {alone}")
        texts = "sequences" if statistic == "induction" else "stories"
        where = f" ({about.unit}; {leaders[0].estimate.n:,} held-out {texts})"
        changes = [self._change_sentence(change) for change in self.changes if change.statistic == statistic]
        untrained, even = (leaders[0].controls[name].value for name in (UNTRAINED, EVEN))
        controls = [
            f"the selected head of one more untrained model {interval(untrained)} (from {untrained.n} models)",
            f"even attention {even.estimate:.3f}",
            *beside,
        ]
        return Finding("; ".join(told) + where + "".join(changes), "; ".join(controls))

    # Beside the mean of all heads: some head always changes most, after any training.
    def _change_sentence(self, change: Leader) -> str:
        if change.model not in self.finals:
            return ""
        found = change.estimate
        known = not math.isnan(found.lower)  # the heads of a copy have not changed
        limits = f"[{found.lower:+z.3f}, {found.upper:+z.3f}]" if known else interval_text(*NO_INTERVAL)
        by = f"{found.estimate:+z.3f} {limits}"
        return (
            f". From {self.models[0].label} to {change.model.label} "
            + (f"{change} changes most, by {by}" if sign(found) else f"no head changes significantly: {change}, {by}")
            + f" (mean of all heads, each in its own direction: {interval(change.controls[ALL_HEADS].value)})"
        )

    def show(self) -> None:
        """Print the selected heads of each model; of checkpoints only the last."""
        for model in self.finals:
            rows = []
            for leader in (one for one in self.leaders if one.model is model):
                about = STATISTICS[leader.statistic]
                untrained, even = (leader.controls[name].value for name in (UNTRAINED, EVEN))
                reached = untrained.upper if about.most else untrained.lower
                cells = [interval(leader.estimate, lines=True), f"{reached:.3f}", f"{even.estimate:.3f}"]
                beyond = "no" if leader.within else "yes"
                name = about.words if about.most else f"{about.words} (least)"
                rows.append([name, f"{leader.layer}.{leader.head}", *cells, beyond])
            show_table(
                f"Selected head for each statistic, {model.label}",
                ["", "head", "estimate", UNTRAINED, "even", "beyond"],
                rows,
                caption=CAPTION if model is self.finals[-1] else None,
            )

    def write(
        self,
        which: SubjectArguments,
        stories: TextArguments,
        args: AttentionArguments,
        checks: Mapping[str, CaptureCheck],
        large: tuple[int, int] | None,
    ) -> ProbeTable:
        """Write and show all that was found; returns the table."""
        folder, rows = probe_folder(which, "attention"), self.rows()
        tables = {"attention-leaders": ProbeTable(row for leader in self.leaders for row in leader.rows)}
        if args.all_checkpoints:
            tables["attention-steps"] = self.step_rows()
        if len(self.models) > 1:
            since: Row = {"since": self.models[0].label}
            tables["attention-changes"] = ProbeTable(row | since for change in self.changes for row in change.rows)
        over = f"{len(self.texts.documents):,} stories of {short_names([stories.dataset_name])[0]}"
        write_file(folder / PAGE, self.page(over, args, large))
        self.show()
        about = {"stories": len(self.texts.documents), "tokens_of_the_maps": self.texts.tokens, "page": PAGE}
        figures = self.figures(rows, tables, over, large)
        finding = self.finding(args.statistic)
        write_findings("attention", (which, stories, args), rows, finding, about, figures, checks, tables)
        return rows

    def figures(
        self, rows: ProbeTable, tables: Mapping[str, ProbeTable], over: str, large: tuple[int, int] | None
    ) -> dict[str, Figure]:
        """Return the figures by file name: statistics, maps of each final model, one head large, and steps."""
        finals, tokens = self.finals, self.texts.tokens
        names = {name: STATISTICS[name].words for name in self.statistics}
        labels = {model.label for model in finals}
        shown = [row for row in rows if row["role"] == "control" or row["model"] in labels]
        title = f"Attention statistics of each head, mean over {over}"
        figures = {"attention": statistics_figure(shown, tables["attention-leaders"], names, title)}
        for model in finals:
            name = "attention-maps" + (f"-{file_name(model.label)}" if len(finals) > 1 else "")
            figures[name] = maps_figure(model.maps_LHTT, tokens, f"Attention maps of each head of {model.label}")
        if large is not None:
            layer, head = large
            maps = {model.label: model.maps_LHTT[layer, head] for model in finals}
            whose = f" of {finals[0].label}" if len(finals) == 1 else ""
            figures["attention-head"] = head_figure(maps, tokens, f"Attention map of layer {layer}, head {head}{whose}")
        if steps := tables.get("attention-steps"):
            title = f"Attention statistics of each head over training, mean over {over}"
            figures["attention-steps"] = steps_figure(rows, steps, names, title)
        return figures

    def page(self, over: str, args: AttentionArguments, large: tuple[int, int] | None) -> str:
        """Return the page with the maps and statistics of every model; it begins with the head of the finding."""
        leader = self.leader(self.finals[-1], args.statistic)
        layer, head = large or (leader.layer, leader.head)
        tokens, (layers, heads) = self.texts.tokens, self.finals[-1].maps_LHTT.shape[:2]
        statistics, models = [], []
        for name in self.statistics:
            about = {"key": name, "name": STATISTICS[name].words, "unit": STATISTICS[name].unit}
            controls = {"even": self.even(name).estimate, "untrained": _bounds(self.untrained_leader(name))}
            statistics.append(about | controls)
        for model in self.models:
            values = {n: list(map(_bounds, self._of_heads(model.values(n), n))) for n in model.statistics}
            models.append(page_model(model.label, model.run, model.step, model.maps_LHTT, values))
        if "induction" in self.statistics:
            over += f" and {args.induction_sequences} repeated sequences"
        start = {"model": len(self.models) - 1, "layer": layer, "head": head, "statistic": args.statistic}
        data = {"tokens": tokens, "layers": layers, "heads": heads, "texts": over, "start": start}
        return attention_page(
            f"Attention of {', '.join(model.label for model in self.finals)}",
            data | {"statistics": statistics, "models": models},
            lede=f"Maps of {'the first story' if args.text is None else 'a text'}, {len(tokens)} tokens; "
            f"statistics over {over}.",
            footer="Each number is the mean over stories of a story's mean over its queries without the first token, "
            "which attends only to itself. Even: even attention to all tokens so far. Untrained: where the selected "
            f"head of one more model with random weights would lie (95 %, from {len(self.untrained)} models), on the "
            "half of the stories that it was not selected on. Weights in the maps are rounded by at most 0.4 %.",
        )


def _bounds(estimate: Estimate) -> list[float]:
    return [estimate.estimate, estimate.lower, estimate.upper]
