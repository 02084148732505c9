"""Results of the lens probe: one model measured, its table, the finding and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, note, show_table
from lm_trials.estimates import Estimate, StoryBootstrap
from lm_trials.evaluation.losses import check_causal
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import CaptureCheck, check_capture
from lm_trials.probing.findings import Finding, file_name
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.lens.flags import LensArguments
from lm_trials.probing.lens.lenses import (
    SITES,
    SUMS,
    LastLayerCheck,
    LensSums,
    check_head,
    check_last_layer,
    lens_sums,
    mean_prediction,
    read_text,
    weights_sha256,
)
from lm_trials.probing.lens.training import LensSettings, LensStories, TunedLens, story_documents, train_lens
from lm_trials.probing.subjects import Subject, load_subject, run_names, untrained
from lm_trials.probing.tables import ProbeTable, Row, exact, interval, sign

NATS = "nats per token"
UNITS = {"loss": NATS, "kl": NATS, "agreement": "share of the final top-1", "accuracy": "next-token accuracy"}
FREQUENCIES = ("frequencies", None)
CONTROLS = ("frequencies", "untrained")
TERMINAL_TOKENS = 12
"""A table of more tokens does not fit a terminal."""


def text_ids(subject: Subject, text: str) -> np.ndarray:
    """Return the ids of `--text`, after the tokens that a story begins with.

    Raises:
        UsageError: for fewer than two tokens, or more than the model's window.
    """
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < 2:
        raise UsageError(f"--text {text!r} is {len(ids)} token; give a text of at least two")
    ids = subject.opening() + ids
    if len(ids) > subject.window:
        raise UsageError(f"--text has {len(ids)} tokens and {subject.label} reads {subject.window}; give a shorter one")
    return np.array(ids, dtype=np.int64)


@dataclass(frozen=True)
class LensResult:
    """The lenses of one model, measured.

    Attributes:
        subject: the model.
        layers: that were measured, the last among them.
        sums: of each story; those of random weights under the lens "untrained".
        capture: that the hooks changed no prediction.
        last_layer: that the lens at the last layer is the model.
        tuned: its tuned lens, if there is one.
        guessing: the loss of a uniform prediction, in nats.
        text: the rows of `read_text` for `--text`.
        seed: of the intervals.
    """

    subject: Subject
    layers: list[int]
    sums: LensSums
    capture: CaptureCheck
    last_layer: LastLayerCheck
    tuned: TunedLens | None
    guessing: float
    text: list[dict[str, Any]]
    seed: int = 0

    @property
    def best(self) -> str:
        """The lens that the finding is about."""
        return "tuned" if self.tuned is not None else "logit"

    @property
    def middle(self) -> int:
        """The middle one of the measured layers before the last."""
        before = self.layers[:-1] or self.layers
        return before[len(before) // 2]

    @property
    def about(self) -> Row:
        """The columns that name the model of a row."""
        return {"model": self.subject.label, "step": self.subject.step, "seed": self.subject.candidate.seed}

    @cached_property
    def rows(self) -> ProbeTable:
        """The table: each lens' measures at each layer, and how much nearer it is than the controls."""
        tables = self.sums.sums
        columns = {(*key, name): table[:, at] for key, table in tables.items() for at, name in enumerate(SUMS)}
        found = ProbeTable()

        def add(lens: str, layer: int | None, metric: str, unit: str, *columns: np.ndarray) -> None:
            role = "control" if lens in CONTROLS else "finding"
            about = self.about | {"role": role, "lens": lens, "layer": layer, "metric": metric}
            found.add(_per_token(self.sums.tokens_S, unit, self.seed, *columns), about)

        for lens, layer in tables:
            for metric, unit in UNITS.items():
                add(lens, layer, metric, unit, columns[lens, layer, metric])
        for lens, layer in tables:
            if lens not in CONTROLS:
                own = columns[lens, layer, "kl"]
                add(lens, layer, "kl_below_frequencies", NATS, columns[*FREQUENCIES, "kl"], own)
                if layer and 0 in self.layers:
                    add(lens, layer, "kl_below_layer_0", NATS, columns[lens, 0, "kl"], own)
        return found

    @cached_property
    def table(self) -> dict[tuple[Any, ...], Estimate]:
        """The estimates of the table, by lens, layer and measure."""
        return self.rows.estimates("lens", "layer", "metric")


def _per_token(
    tokens_S: np.ndarray, unit: str, seed: int, values_S: np.ndarray, less_S: np.ndarray | None = None
) -> Estimate:
    """Return the mean of values per token, or by how much it is above another's, paired by story."""
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(np.stack([tokens_S, values_S] if less_S is None else [tokens_S, values_S, less_S], axis=1))
    scale = "identity" if unit == NATS else "logit"
    return bootstrap.estimate(
        lambda sums: (sums[..., 1] - (0 if less_S is None else sums[..., 2])) / sums[..., 0], unit, scale=scale
    )


def measure_subject(
    subject: Subject,
    stories: LensStories,
    models: SubjectArguments,
    texts: TextArguments,
    args: LensArguments,
    folder: Path,
    lens_file: str | None = None,
    control: bool = True,
) -> LensResult:
    """Load a model, train or load its tuned lens, and score the stories with every lens.

    Args:
        folder: of the trained lens.
        lens_file: a tuned lens to use instead of training one.
        control: whether random weights of its shape are measured too.

    Raises:
        UsageError: for a layer that the model does not have, or a lens of another model.
    """
    batch_size, label = texts.per_device_eval_batch_size, subject.label
    lens = TunedLens.load(Path(lens_file)) if lens_file else None
    documents = story_documents(subject, stories.evaluation)
    model = load_subject(subject, models)
    anatomy = anatomy_of(model, label)
    layers = sorted({*anatomy.check_hidden(args.layers or range(anatomy.num_blocks + 1)), anatomy.num_blocks})
    evaluated = list(documents.values())
    check_causal(model, label)
    capture = check_capture(model, evaluated[0].tolist(), SITES, label)
    check_head(model, evaluated[0], label)  # before a lens is trained; with the losses after it
    if lens is not None and lens_file is not None:
        lens.check(lens_file, anatomy, weights_sha256(model), layers)
        lens.check_held_out(lens_file, list(documents))
        frequencies_V = lens.log_frequencies_V
    else:
        learnt = story_documents(subject, stories.training)
        frequencies_V = mean_prediction(model, list(learnt.values()), batch_size, f"token frequencies, {label}")
        if args.tuned and anatomy.num_blocks > min(layers):
            settings = LensSettings(args.lens_steps, args.lens_batch_size, args.learning_rate, models.seed)
            lens = train_lens(model, learnt, frequencies_V, layers, settings, label)
            alone = len(models.model_name_or_path) == 1 and not args.all_checkpoints
            lens.save(folder / ("lens.safetensors" if alone else f"lens-{file_name(label)}.safetensors"))
    maps = lens.translators if lens is not None else None
    sums = lens_sums(model, evaluated, layers, maps, frequencies_V, batch_size, f"lenses, {label}")
    last_layer = check_last_layer(model, evaluated, sums, subject.window, batch_size, label)
    text = read_text(model, text_ids(subject, args.text), layers, maps) if args.text else []
    del model
    if control:
        random = untrained(subject, models)
        of_random = lens_sums(random, evaluated, layers, None, None, batch_size, f"untrained, as {label}")
        sums.sums.update({("untrained", layer): table for (_, layer), table in of_random.sums.items()})
    guessing = float(np.log(len(frequencies_V)))
    return LensResult(subject, layers, sums, capture, last_layer, lens, guessing, text, models.seed)


def first_of_each_shape(subjects: Sequence[Subject]) -> list[bool]:
    """Return which models are the first of their shape: random weights are measured once per shape."""
    # Random weights of one shape differ by their draw only; measuring each model's again would cost a forward pass of
    # all stories per model.
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    shapes = [[getattr(subject.config, name, None) for name in names] for subject in subjects]
    return [shape not in shapes[:place] for place, shape in enumerate(shapes)]


def finding_of(results: Sequence[LensResult], checkpoints: bool) -> Finding:
    """Return from which layer on each model is nearer to its final prediction than its controls, as sentences."""
    first, *others = results
    sentences = _over_training(results) if checkpoints else [_sentence(first), *(_beside(one, first) for one in others)]
    return Finding(" ".join(sentences), _control_sentence(results))


def first_layer(result: LensResult, metric: str) -> int | None:
    """Return the layer from which on, up to the last but one measured, a difference is above 0."""
    onset = None
    for layer in reversed(result.layers[:-1]):
        difference = result.table.get((result.best, layer, metric))
        if difference is None or sign(difference) < 1:
            break
        onset = layer
    return onset


def _sentence(result: LensResult) -> str:
    table, lens, middle, label = result.table, result.best, result.middle, result.subject.label
    onset, beyond = (first_layer(result, f"kl_below_{control}") for control in ("frequencies", "layer_0"))
    if middle == result.layers[-1]:
        return f"{label}: only the last layer was measured, so there is no earlier one to compare with it."
    kl = table[lens, middle, "kl"]
    numbers = (
        f"At layer {middle} of {result.layers[-1]} its KL is {interval(kl)} nats per token, that of the token "
        f"frequencies {interval(table[*FREQUENCIES, 'kl'])} (n={kl.n:,} stories)."
    )
    if onset is None:
        return (
            f"{label}: no layer before the last is shown to be nearer to the final prediction than the token "
            f"frequencies ({lens} lens). {numbers}"
        )
    where = f"from layer {beyond} on" if beyond is not None else "at no layer before the last"
    more = f" It is nearer than layer 0 {where}." if 0 in result.layers else ""
    return (
        f"{label}: from layer {onset} on, the {lens} lens is nearer to the final prediction than the token frequencies."
        f"{more} {numbers}"
    )


def _beside(result: LensResult, first: LensResult) -> str:
    """Return the sentence of a further model, with the difference of its middle layer from the first model's."""
    lens, middle = result.best, result.middle
    onset = first_layer(result, "kl_below_frequencies")
    where = f"from layer {onset} on" if onset is not None else "at no layer before the last"
    sentence = (
        f"{result.subject.label}: nearer than the token frequencies {where}; "
        f"KL {interval(result.table[lens, middle, 'kl'])} nats per token at layer {middle}"
    )
    change = _change(first, result, middle, lens)
    if change is None:
        return f"{sentence}."
    verdict = "" if sign(change) else " (not significant)"
    return f"{sentence}, difference from {first.subject.label} {interval(change)}{verdict}."


def _over_training(results: Sequence[LensResult]) -> list[str]:
    """Return for each run how the middle layer's distance changed from its first to its last checkpoint."""
    sentences = []
    for run, group in by_run(results).items():
        first, last = group[0], group[-1]
        middle = first.middle
        if (change := _change(first, last, middle)) is None:
            continue
        before, after = (
            f"{interval(result.table['logit', middle, 'kl'])} at "
            + ("the final model" if result.subject.step is None else f"step {result.subject.step}")
            for result in (first, last)
        )
        sentences.append(
            f"{run}: the logit lens' KL from layer {middle} to the final prediction "
            f"{'changed' if sign(change) else 'did not change significantly'} ({interval(change)} nats per token), "
            f"from {before} to {after} (n={change.n:,} stories)."
        )
    return sentences


def _change(first: LensResult, last: LensResult, layer: int, lens: str = "logit") -> Estimate | None:
    """Return by how much a layer's KL is larger in the second of two models, paired by story; None without both."""
    tables = [result.sums.sums.get((lens, layer)) for result in (first, last)]
    if any(table is None for table in tables) or not np.array_equal(first.sums.tokens_S, last.sums.tokens_S):
        return None
    pairs = [table[:, SUMS.index("kl")] for table in tables if table is not None]
    before_S, after_S = pairs
    return _per_token(first.sums.tokens_S, NATS, first.seed, after_S, before_S)


def by_run(results: Sequence[LensResult]) -> dict[str, list[LensResult]]:
    """Return the results of each run, its checkpoints in order and the final model after them."""
    runs: dict[str, list[LensResult]] = {}
    for name, result in zip(run_names([result.subject for result in results]), results, strict=True):
        runs.setdefault(name, []).append(result)
    return runs


# KL to a model's own last layer falls with depth in random weights too, and their top-1 agrees with it: closeness to
# the last layer alone is no evidence of learning.
def _control_sentence(results: Sequence[LensResult]) -> str:
    worst = max(results, key=lambda result: result.last_layer.apart)
    parts = [f"{worst.last_layer}" + (f" (largest of {len(results)} models)" if len(results) > 1 else "")]
    for result in results:
        table = result.table
        losses = {n: found for (lens, n, metric), found in table.items() if (lens, metric) == ("untrained", "loss")}
        if not losses:
            continue
        best = min(losses, key=lambda layer: losses[layer].estimate)
        frequencies = table[*FREQUENCIES, "loss"]
        # 2 %: random weights are by luck some hundredths better than a uniform prediction, and the token frequencies
        # of a poor model may be worse than it.
        better = losses[best].upper < min(frequencies.estimate, 0.98 * result.guessing)
        verdict = "BETTER" if better else "no better"
        parts.append(
            f"random weights in {result.subject.label}'s shape predict {verdict} than chance (best loss "
            f"{losses[best].estimate:.3f} nats per token, uniform {result.guessing:.3f}) but are near their own last "
            f"layer (KL {table['untrained', result.middle, 'kl'].estimate:.3f} at layer {result.middle})"
        )
    return "; ".join(parts) + "."


def readable(tokenizer: Any, token: int) -> str:
    """Return a token as readable text: spaces shown, a byte that is not a character by its name."""
    name, text = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if name is None:  # an id beyond the tokenizer's, in a padded vocabulary
        return f"[{token}]"
    if name[:1] in ("▁", "Ġ") and not text.startswith(" "):
        text = f" {text}"
    shown = text.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣")
    return shown if shown and shown.isprintable() and "\ufffd" not in shown else name


def text_rows(result: LensResult) -> ProbeTable:
    """Return the table of `--text`: each lens' prediction after each token, with its probability."""
    rows = ProbeTable()
    for row in result.text:
        where = {key: row[key] for key in ("lens", "layer", "position")}
        tokens = {key: readable(result.subject.tokenizer, row[key]) for key in ("after", "prediction")}
        rows.add(exact(row["probability"], 1, "probability"), {**result.about, "role": "finding", **where, **tokens})
    return rows


def show_lens(results: Sequence[LensResult]) -> None:
    """Print each model's layers: distance from the final prediction, loss, agreement."""
    columns = {"KL to final": "kl", "loss": "loss", "same top token": "agreement"}
    for result in results:
        result.rows.show(
            f"{result.subject.label}, {len(result.sums.tokens_S):,} stories",
            "lens",
            {
                "token frequencies" if layer is None else f"{lens}, layer {layer}": {"lens": lens, "layer": layer}
                for lens, layer in result.sums.sums
            },
            {name: {"metric": metric} for name, metric in columns.items()},
            "[95 % bootstrap-t interval over stories]; KL and loss in nats per token",
        )


def show_text(rows: ProbeTable) -> None:
    """Print the table of a short text, the last layer on top; a long one is in the figure."""
    places = sorted(rows.distinct("position"))
    if len(places) > TERMINAL_TOKENS:
        note(f"note: --text has {len(places)} tokens; the predictions are in the figure and in lens_text.csv")
        return
    for model, lens in rows.distinct("model", "lens"):
        mine = rows.where(model=model, lens=lens)
        lines = []
        for layer in sorted(mine.distinct("layer"), reverse=True):
            here = sorted(mine.where(layer=layer), key=lambda row: row["position"])
            lines.append([str(layer), *(f"{row['prediction']}\n{row['estimate']:.2f}" for row in here)])
        show_table(f"{model}, {lens} lens: most likely next token", ["layer", *(row["after"] for row in here)], lines)
