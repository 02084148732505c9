"""Trials of weights: which stories are scored, which rank what is pruned, and what is run on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lm_trials.console import UsageError, note, progress
from lm_trials.data.datasets import dataset_of
from lm_trials.evaluation.feature_scores import write_generations
from lm_trials.evaluation.losses import Document
from lm_trials.evaluation.summary import record_documents
from lm_trials.files import weights_digest
from lm_trials.models.reference import separator_of
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.subjects import Subject, read_stories, texts_digest
from lm_trials.probing.weights.changes import Matrix, MatrixChange, Weights, check_same_shape, matrices_of, read_weights
from lm_trials.probing.weights.edits import (
    FIRST,
    LARGEST,
    SECOND,
    Pruning,
    Removal,
    Trial,
    Workbench,
    Write,
    check_gates,
    pruning_trials,
    removal_trials,
    unit_effects,
)
from lm_trials.probing.weights.flags import WeightsArguments
from lm_trials.stories.generated.detectors import detect_features
from lm_trials.stories.records import Record
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder


@dataclass(frozen=True)
class Texts:
    """Stories by set: those that are scored, and those that rank what is pruned; the deleted feature's set first."""

    scored: dict[str, list[Document]]
    ranking: dict[str, list[Document]]


def read_texts(subject: Subject, text: TextArguments, args: WeightsArguments) -> Texts:
    """Read the deleted feature's set and the control set.

    What ranks is never what is scored: else the first units would be those that happen to hurt these stories.

    Raises:
        UsageError: for a set that is not there, is empty, or has too few stories to be halved.
    """
    run = subject.candidate.run
    marks = document_marks(subject.tokenizer, subject.candidate.append_eos, separator_of(run))
    encode = batch_encoder(subject.tokenizer)

    def documents(records: Sequence[Record]) -> list[Document]:
        return list(record_documents(records, encode, marks))

    scored, ranking = {}, {}
    read: list[Record] = []
    names = [text.dataset_name, *([args.control_dataset_name] if args.control_dataset_name else [])]
    if len(set(names)) < len(names):
        raise UsageError(f"--control_dataset_name {names[1]} is the deleted feature's own set; name another")
    for name in names:
        own = replace(text, dataset_name=name)
        stories = read_stories(own)
        read += stories
        if args.prune == "no":
            ranking[name] = []
        elif dataset_of(own).prepared and text.dataset_split in (None, "validation", "test"):
            more = replace(own, dataset_split="train", max_eval_samples=args.ranking_samples)
            ranking[name] = documents(read_stories(more))
        else:
            if len(stories) < 2:
                raise UsageError(f"{name} has one story, which cannot both rank and be scored; give at least 2")
            ranking[name] = documents(stories[1::2][: args.ranking_samples])
            stories = stories[::2]
            note(f"note: every other story of {name} ranks what is pruned, {len(stories):,} are scored")
        scored[name] = documents(stories)
    text.texts_sha256 = texts_digest(read)
    return Texts(scored, ranking)


def tell_lineage(subjects: Sequence[Subject]) -> list[str]:
    """Say of each model whose `run.json` tells, if it was trained from other weights than it is compared with.

    The second is compared with the first, the others with the second.  What is then told is the difference of two
    models, and not what a training did.
    """
    told = []
    for place, subject in enumerate(subjects[1:]):
        before = subjects[min(place, 1)]
        begun = ((subject.candidate.run or {"outcome": {}})["outcome"].get("initial_model") or {}).get("weights_sha256")
        folder = Path(before.reference.path)
        if begun and folder.is_dir() and not before.reference.base and begun != weights_digest(folder):
            told.append(
                f"{subject.label} was not trained from {before.label}, but from other weights: the numbers "
                "compare two models and do not show what a training changed"
            )
    for line in told:
        note(f"note: {line}")
    return told


def read_models(
    subjects: Sequence[Subject], args: SubjectArguments
) -> tuple[PreTrainedModel, list[Matrix], list[tuple[str, Weights, int | None]]]:
    """Load models one after the other and keep their parameters; returns the first, live, and its matrices too.

    Raises:
        UsageError: for models of different shapes, or quantized ones.
    """
    plain, weights = read_weights(subjects[0], args)
    models = [(subjects[0].label, weights, subjects[0].candidate.seed)]
    for subject in subjects[1:]:
        _, weights = read_weights(subject, args)
        check_same_shape((subjects[0].reference.name, models[0][1]), [(subject.reference.name, weights)])
        models.append((subject.label, weights, subject.candidate.seed))
    return plain, matrices_of(plain), models


def writer(subject: Subject, text: TextArguments, args: WeightsArguments, seed: int) -> Write:
    """Return what lets a model write for the prompts that ask for the feature, and counts the stories that have it.

    Raises:
        UsageError: for a data set without prompts, or none that asks for it.
    """
    if not args.num_generations:
        return lambda model: None
    prompts = dataset_of(text).select(text.dataset_split).prompts(args.num_generations)
    asked = [prompt for prompt in prompts if args.feature in prompt.features]
    if not asked:
        raise UsageError(f"--feature {args.feature}: no prompt of {text.dataset_name} asks for it; name its set")

    def write(model: PreTrainedModel) -> tuple[int, int]:
        stories = write_generations(model, subject.tokenizer, asked, args.max_new_tokens, seed=seed)
        return sum(args.feature in detect_features(story.generation) for story in stories), len(stories)

    return write


def score_models(bench: Workbench, models: Sequence[tuple[str, Weights, Any]], write: Write) -> list[Trial]:
    """Score the models as they are; others than the first two are called by their labels."""
    names = [FIRST, SECOND, *(label for label, _, _ in models[2:])]
    trials = []
    for name, (_, weights, _) in progress(list(zip(names, models, strict=True)), "scoring", "models", len(models)):
        bench.put(weights)
        trials.append(Trial(name, "finding", 0, bench.sums(), write(bench.model)))
    return trials


def check_base(bench: Workbench, removal: Removal, base: Weights, trials: Sequence[Trial]) -> float:
    """Check that the changed model without all of its change is the base, and return how far its losses are from it.

    This is what would show a matrix read the wrong way round, or a parameter that was forgotten.

    Raises:
        RuntimeError: where a loss differs by more than rounding explains.
    """
    weights = removal.weights(LARGEST, removal.most)
    matrices = {change.matrix.parameter for change in removal.changes}
    bench.put({name: tensor if name in matrices else base[name] for name, tensor in weights.items()})
    expected = next(trial for trial in trials if trial.method == FIRST).sums
    apart = max(float(abs(sums - expected[name])[:, 0].max()) for name, sums in bench.sums().items())
    if not apart < 0.01:
        raise RuntimeError(f"without its whole change the model is not the base: a story's loss is {apart:g} nats away")
    return apart


def run_trials(
    bench: Workbench,
    models: Sequence[tuple[str, Weights, Any]],
    changes: Sequence[MatrixChange],
    texts: Texts,
    args: WeightsArguments,
    write: Write,
    seed: int,
) -> tuple[list[Trial], float, CaptureCheck | None]:
    """Score the models, then the second one with its change taken back and with units pruned.

    Returns:
        The trials; how far the loss of the model without its whole change is from the base's, in nats of a story; and
        the check of the gates that prune.
    """
    trials = score_models(bench, models, write)
    removal = Removal(models[1][1], changes, seed)
    apart = check_base(bench, removal, models[0][1], trials)
    trials += removal_trials(bench, removal, args.directions, write)
    if args.prune == "no":
        return trials, apart, None
    bench.put(models[1][1])
    anatomy = anatomy_of(bench.model, models[1][0])
    first = next(iter(texts.ranking.values()))[0]
    check = check_gates(anatomy, args.prune, first.input_ids[: bench.window])
    effects = [
        unit_effects(anatomy, args.prune, documents, bench.window, bench.batch_size, f"ranking {args.prune}")
        for documents in texts.ranking.values()
    ]
    pruning = Pruning.by_effect(*effects)
    seeds = range(seed, seed + args.random_draws)
    trials += pruning_trials(bench, anatomy, args.prune, pruning, args.prune_shares, seeds, write)
    return trials, apart, check
