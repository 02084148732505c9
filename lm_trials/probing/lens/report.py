"""Results of lenses: which stories they are trained and read on, one model measured, its rows and its sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, note, show_table
from lm_trials.estimates import Estimate, StoryBootstrap
from lm_trials.evaluation.losses import check_causal
from lm_trials.models.reference import load_config
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
    check_last_layer,
    lens_sums,
    mean_prediction,
    read_text,
    weights_sha256,
)
from lm_trials.probing.lens.training import LensSettings, LensStories, TunedLens, story_documents, train_lens
from lm_trials.probing.subjects import Subject, load_subject, run_names, untrained
from lm_trials.probing.tables import ProbeTable, Row, by_values, exact, interval, sign

NATS = "nats per token"
UNITS = {"loss": NATS, "kl": NATS, "agreement": "share of the final top-1", "accuracy": "next-token accuracy"}
FREQUENCIES = ("frequencies", None)
CONTROLS = ("frequencies", "untrained")
# A table of more tokens is no table for a terminal.
TERMINAL_TOKENS = 12


def text_ids(subject: Subject, text: str) -> np.ndarray:
    """Return the ids of `--text`, with what a story begins with.

    Raises:
        UsageError: for fewer than two tokens, or more than the model sees.
    """
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < 2:
        raise UsageError(f"--text {text!r} is {len(ids)} token; give a text of at least two")
    ids = subject.opening() + ids
    if len(ids) > subject.window:
        raise UsageError(f"--text has {len(ids)} tokens and {subject.label} sees {subject.window}; give a shorter one")
    return np.array(ids, dtype=np.int64)


@dataclass(frozen=True)
class LensResult:
    """What the lenses of one model found.

    Attributes:
        subject: the model.
        layers: that were read, the last among them.
        sums: of each story; those of random weights under the lens "untrained".
        checks: that capturing changed nothing, and that the last layer is the model.
        tuned: its tuned lens, if there is one.
        guessing: the loss of a guess among all tokens, in nats.
        text: what `read_text` says of `--text`.
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
    def depth(self) -> int:
        """The last layer, L."""
        return max(self.layers)

    @property
    def best(self) -> str:
        """The lens that sentences speak of."""
        return "tuned" if self.tuned is not None else "logit"

    @property
    def middle(self) -> int:
        """The layer in the middle of those before the last that are read."""
        before = [layer for layer in self.layers if layer < self.depth] or self.layers
        return before[len(before) // 2]

    @property
    def about(self) -> Row:
        """The columns that say which model a row is of."""
        return {"model": self.subject.label, "step": self.subject.step, "seed": self.subject.candidate.seed}

    @cached_property
    def rows(self) -> ProbeTable:
        """The table: each lens' numbers at each layer, and how much nearer it is than what looks at less."""
        tables = list(self.sums.sums.items())
        columns = {
            (*key, name): 1 + len(SUMS) * at + place
            for at, (key, _) in enumerate(tables)
            for place, name in enumerate(SUMS)
        }
        bootstrap = StoryBootstrap(self.seed)  # one for all, so that differences are taken within a story
        bootstrap.update(np.concatenate([self.sums.tokens_S[:, None], *(table for _, table in tables)], axis=1))
        found = ProbeTable()

        def add(lens: str, layer: int | None, metric: str, unit: str, column: int, less: int | None = None) -> None:
            role = "control" if lens in CONTROLS else "finding"
            about = self.about | {"role": role, "lens": lens, "layer": layer, "metric": metric}
            found.add(bootstrap.estimate(_mean(column, less), unit), about)

        for lens, layer in self.sums.sums:
            for metric, unit in UNITS.items():
                add(lens, layer, metric, unit, columns[lens, layer, metric])
        for lens, layer in self.sums.sums:
            if lens not in CONTROLS:
                own = columns[lens, layer, "kl"]
                add(lens, layer, "kl_below_frequencies", NATS, columns[*FREQUENCIES, "kl"], own)
                if layer and 0 in self.layers:
                    add(lens, layer, "kl_below_layer_0", NATS, columns[lens, 0, "kl"], own)
        return found

    @cached_property
    def table(self) -> dict[tuple[Any, ...], Estimate]:
        """The same, by lens, layer and measure."""
        return self.rows.estimates("lens", "layer", "metric")


def _mean(column: int, less: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Return the statistic of one column per token, less another's."""
    return lambda sums: (sums[..., column] - (0 if less is None else sums[..., less])) / sums[..., 0]


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
    """Load a model, train or reload its tuned lens, and read the stories with every lens.

    Args:
        folder: where the trained lens is kept.
        lens_file: a tuned lens to use instead of training one.
        control: whether random weights of its shape are read too.

    Raises:
        UsageError: for a layer that it does not have, or a lens of another model.
    """
    batch_size, label = texts.per_device_eval_batch_size, subject.label
    lens = TunedLens.load(Path(lens_file)) if lens_file else None
    documents = story_documents(subject, stories.evaluation)
    model = load_subject(subject, models)
    anatomy = anatomy_of(model, label)
    layers = sorted({*anatomy.check_hidden(args.layers or range(anatomy.num_blocks + 1)), anatomy.num_blocks})
    evaluated = list(documents.values())
    check_causal(model, label)
    capture = check_capture(model, evaluated[0], SITES, label)
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
            lens.save(folder / lens_name(label, models, args))
    maps = lens.translators if lens is not None else None
    sums = lens_sums(model, evaluated, layers, maps, frequencies_V, batch_size, f"reading {label}")
    last_layer = check_last_layer(model, evaluated, sums, subject.window, batch_size, label)
    text = read_text(model, text_ids(subject, args.text), layers, maps) if args.text else []
    del model
    if control:
        random = untrained(subject, models)
        of_random = lens_sums(random, evaluated, layers, None, None, batch_size, f"untrained, as {label}")
        sums.sums.update({("untrained", layer): table for (_, layer), table in of_random.sums.items()})
    return LensResult(
        subject, layers, sums, capture, last_layer, lens, float(np.log(len(frequencies_V))), text, models.seed
    )


def lens_name(label: str, models: SubjectArguments, args: LensArguments) -> str:
    """Return the file that a model's tuned lens is kept in.

    >>> lens_name("base", SubjectArguments(["runs/base"]), LensArguments())
    'lens.safetensors'
    """
    alone = len(models.model_name_or_path) == 1 and not args.all_checkpoints
    return "lens.safetensors" if alone else f"lens-{file_name(label)}.safetensors"


def first_of_each_shape(subjects: Sequence[Subject]) -> list[bool]:
    """Return which models are the first of their shape: random weights are read once for each."""
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    configs = [load_config(subject.reference).get_text_config() for subject in subjects]
    shapes = [tuple(str(getattr(config, name, None)) for name in names) for config in configs]
    return [shape not in shapes[:place] for place, shape in enumerate(shapes)]


def finding_of(results: Sequence[LensResult], checkpoints: bool) -> Finding:
    """Say from which layer on each model's prediction is nearer to its last than what looks at less, and what not."""
    first, *others = results
    told = _over_training(results) if checkpoints else [_told(first), *(_told_beside(one, first) for one in others)]
    return Finding(" ".join(told), _control_sentence(results))


def first_layer(result: LensResult, metric: str) -> int | None:
    """Return the layer from which on, up to the last but one that is read, a difference is above 0."""
    onset = None
    for layer in sorted((layer for layer in result.layers if layer < result.depth), reverse=True):
        difference = result.table.get((result.best, layer, metric))
        if difference is None or sign(difference) < 1:
            break
        onset = layer
    return onset


def _told(result: LensResult) -> str:
    table, lens, middle, label = result.table, result.best, result.middle, result.subject.label
    onset, beyond = (first_layer(result, f"kl_below_{what}") for what in ("frequencies", "layer_0"))
    if middle == result.depth:
        return f"{label}: only the last layer is read, so there is nothing to compare."
    kl = table[lens, middle, "kl"]
    logit = f"; logit lens {interval(table['logit', middle, 'kl'])}" if lens == "tuned" else ""
    numbers = (
        f"at layer {middle} of {result.depth} it is {interval(kl)} nats per token away (KL{logit}; token frequencies "
        f"{interval(table[*FREQUENCIES, 'kl'])}; n={kl.n:,} stories)"
    )
    if onset is None:
        return (
            f"{label}: nothing is shown before the last layer: the {lens} lens is not nearer to the final prediction "
            f"than the token frequencies; {numbers}."
        )
    where = f"from layer {beyond} on" if beyond is not None else "nowhere before the last"
    more = f", and than its own layer 0, which has seen one token, {where}" if 0 in result.layers else ""
    return (
        f"{label}: the {lens} lens is nearer to the final prediction than the token frequencies from layer {onset} on"
        f"{more}; {numbers}."
    )


def _told_beside(result: LensResult, first: LensResult) -> str:
    """Say of a further model what is said of the first, and how far its middle layer differs from the first's."""
    lens, middle = result.best, result.middle
    onset = first_layer(result, "kl_below_frequencies")
    nearer = f"nearer than the token frequencies from layer {onset} on" if onset is not None else "nothing is shown"
    told = f"{result.subject.label}: {nearer}; {interval(result.table[lens, middle, 'kl'])} nats per token at layer"
    change = _change(first, result, middle, lens)
    if change is None:
        return f"{told} {middle}."
    shown = "" if sign(change) else ", no difference shown"
    return f"{told} {middle}, {interval(change)} above {first.subject.label}{shown}."


def _over_training(results: Sequence[LensResult]) -> list[str]:
    """Say how the middle layer's distance changed from the first to the last checkpoint of each run."""
    sentences = []
    for run, group in by_run(results).items():
        first, last = group[0], group[-1]
        middle = first.middle
        if (change := _change(first, last, middle)) is None:
            continue
        before, after = (interval(result.table["logit", middle, "kl"]) for result in (first, last))
        sentences.append(
            f"{run}: the logit lens' distance of layer {middle} from the model's own last layer "
            f"{'has changed' if sign(change) else 'has not been shown to change'} ({interval(change)} nats per token), "
            f"from {before} at step {first.subject.step} to {after} at step {last.subject.step} (n={change.n:,} "
            "stories)."
        )
    return sentences


def _change(first: LensResult, last: LensResult, layer: int, lens: str = "logit") -> Estimate | None:
    """Return by how much a layer's KL is larger in the second of two models, story by story; None without both."""
    tables = [result.sums.sums.get((lens, layer)) for result in (first, last)]
    if any(table is None for table in tables) or not np.array_equal(first.sums.tokens_S, last.sums.tokens_S):
        return None
    pairs = [table[:, SUMS.index("kl")] for table in tables if table is not None]
    bootstrap = StoryBootstrap(first.seed)
    bootstrap.update(np.stack([first.sums.tokens_S, *pairs], axis=1))
    return bootstrap.estimate(_mean(2, 1), NATS)


def by_run(results: Sequence[LensResult]) -> dict[str, list[LensResult]]:
    """Return the results of each run, its checkpoints in order and the final model after them."""
    names = run_names([result.subject for result in results])
    runs = by_values(zip(names, results, strict=True), key=lambda pair: pair[0])
    return {run: [result for _, result in pairs] for run, pairs in runs.items()}


def _control_sentence(results: Sequence[LensResult]) -> str:
    worst = max(results, key=lambda result: result.last_layer.apart)
    parts = [f"{worst.last_layer}" + (f", in the farthest of {len(results)} models" if len(results) > 1 else "")]
    for result in results:
        table = result.table
        read = {
            layer: found for (lens, layer, metric), found in table.items() if (lens, metric) == ("untrained", "loss")
        }
        if not read:
            continue
        best, first = min(read, key=lambda layer: read[layer].estimate), min(read)
        frequencies = table[*FREQUENCIES, "loss"]
        # By luck a guess is some hundredths better than guessing; the frequencies of a poor model may be worse.
        something = read[best].upper < min(frequencies.estimate, 0.98 * result.guessing)
        parts.append(
            f"random weights in {result.subject.label}'s shape predict the text "
            f"{'BETTER' if something else 'no better'} than chance at any layer (at best {interval(read[best])} nats "
            f"per token, layer {best}; token frequencies {interval(frequencies)}; guessing {result.guessing:.3f}), "
            f"though their layers too come nearer to their last (KL {table['untrained', first, 'kl'].estimate:.3f} at "
            f"layer {first}, {table['untrained', result.middle, 'kl'].estimate:.3f} at layer {result.middle})"
        )
    return "; ".join(parts) + "."


def readable(tokenizer: Any, token: int) -> str:
    """Return a token as a person can read it: blanks shown, a byte that is no text by its name."""
    name, text = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if name is None:  # an id beyond the tokenizer's, as of a padded vocabulary
        return f"[{token}]"
    if name[:1] in ("▁", "Ġ") and not text.startswith(" "):
        text = f" {text}"
    shown = text.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣")
    return shown if shown and shown.isprintable() and "\ufffd" not in shown else name


def text_rows(result: LensResult) -> ProbeTable:
    """Return the table of `--text`: what each lens would say after each token, with its probability."""
    rows = ProbeTable()
    for row in result.text:
        where = {key: row[key] for key in ("lens", "layer", "position")}
        tokens = {key: readable(result.subject.tokenizer, row[key]) for key in ("after", "prediction")}
        rows.add(exact(row["probability"], 1, "probability"), {**result.about, "role": "finding", **where, **tokens})
    return rows


def show_lens(results: Sequence[LensResult]) -> None:
    """Print each model's layers: how far from the final prediction, and what they cost."""
    columns = {"KL to the final": "kl", "nats per token": "loss", "top-1 as the final": "agreement"}
    for result in results:
        result.rows.show(
            f"{result.subject.label}, {len(result.sums.tokens_S):,} stories",
            "lens",
            {
                "token frequencies" if layer is None else f"{lens}, layer {layer}": {"lens": lens, "layer": layer}
                for lens, layer in result.sums.sums
            },
            {name: {"metric": metric} for name, metric in columns.items()},
            "[95 % bootstrap interval over stories]; KL and loss in nats per token",
            interval,
        )


def show_text(rows: ProbeTable) -> None:
    """Print the table of a short text, the last layer on top; a long one is in the figure."""
    places = sorted(rows.distinct("position"))
    if len(places) > TERMINAL_TOKENS:
        note(f"note: --text has {len(places)} tokens; what the layers say of it is in the figure and in lens_text.csv")
        return
    for model, lens in rows.distinct("model", "lens"):
        lines = []
        for layer in sorted(rows.where(model=model, lens=lens).distinct("layer"), reverse=True):
            here = sorted(rows.where(model=model, lens=lens, layer=layer), key=lambda row: row["position"])
            lines.append([str(layer), *(f"{row['prediction']}\n{row['estimate']:.2f}" for row in here)])
        after = [row["after"] for row in here]
        show_table(f"{model}, {lens} lens: likeliest next token", ["layer", *after], lines)
