"""Trials of the weights probe: the stories that are scored, those that rank units, and the variants of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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
    """Stories by set, the deleted feature's set first: those to score and those to rank units on."""

    scored: dict[str, list[Document]]
    ranking: dict[str, list[Document]]


def read_texts(subject: Subject, text: TextArguments, args: WeightsArguments) -> Texts:
    """Read the deleted feature's set and the control set.

    No story both ranks and is scored: otherwise the first units would be those that happen to hurt these stories.

    Raises:
        UsageError: for a set that does not exist, is empty, or is too small to be halved.
    """
    marks = document_marks(subject.tokenizer, subject.candidate.append_eos, separator_of(subject.candidate.run))
    encode = batch_encoder(subject.tokenizer)

    def documents(records: Sequence[Record]) -> list[Document]:
        return list(record_documents(records, encode, marks))

    scored: dict[str, list[Document]] = {}
    ranking: dict[str, list[Document]] = {}
    read: list[Record] = []
    names = [text.dataset_name, *([args.control_dataset_name] if args.control_dataset_name else [])]
    if len(set(names)) < len(names):
        raise UsageError(f"--control_dataset_name {names[1]} is also --dataset_name; name another set")
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
                raise UsageError(f"--dataset_name {name} has one story; give at least 2, to rank and to score")
            ranking[name] = documents(stories[1::2][: args.ranking_samples])
            stories = stories[::2]
            note(f"note: every other story of {name} ranks units for pruning; {len(stories):,} are scored")
        scored[name] = documents(stories)
    text.texts_sha256 = texts_digest(read)
    return Texts(scored, ranking)


def lineage_notes(subjects: Sequence[Subject]) -> list[str]:
    """Return and print which models were, by their `run.json`, trained from others than the one they are compared with.

    The second model is compared with the first, the others with the second.
    """
    notes = []
    for place, subject in enumerate(subjects[1:]):
        before = subjects[min(place, 1)]
        begun = ((subject.candidate.run or {"outcome": {}})["outcome"].get("initial_model") or {}).get("weights_sha256")
        folder = Path(before.reference.path)
        if begun and folder.is_dir() and not before.reference.base and begun != weights_digest(folder):
            notes.append(
                f"{subject.label} was not trained from {before.label} but from other weights, so the difference is not "
                "the effect of its training"
            )
            note(f"note: {notes[-1]}")
    return notes


def read_models(
    subjects: Sequence[Subject], args: SubjectArguments
) -> tuple[PreTrainedModel, list[Matrix], list[tuple[str, Weights, int | None]]]:
    """Load models one after the other; returns the first, its matrices, and each one's label, parameters and seed.

    Raises:
        UsageError: for models of different shapes, or quantized ones.
    """
    plain, weights = read_weights(subjects[0], args)
    models = [(subjects[0].label, weights, subjects[0].candidate.seed)]
    for subject in subjects[1:]:
        _, weights = read_weights(subject, args)
        check_same_shape(subjects[0].reference.name, models[0][1], subject.reference.name, weights)
        models.append((subject.label, weights, subject.candidate.seed))
    return plain, matrices_of(plain), models


def writer(subject: Subject, text: TextArguments, args: WeightsArguments, seed: int) -> Write:
    """Return a function that generates stories for the prompts with the feature and counts those that have it.

    Raises:
        UsageError: for a data set without such prompts.
    """
    if not args.num_generations:
        return lambda model: None
    prompts = dataset_of(text).select(text.dataset_split).prompts(args.num_generations)
    asked = [prompt for prompt in prompts if args.feature in prompt.features]
    if not asked:
        raise UsageError(f"--feature {args.feature}: no prompt of {text.dataset_name} has it; name another set")

    def write(model: PreTrainedModel) -> tuple[int, int]:
        stories = write_generations(model, subject.tokenizer, asked, args.max_new_tokens, seed=seed)
        return sum(args.feature in detect_features(story.generation) for story in stories), len(stories)

    return write


def check_base(bench: Workbench, removal: Removal, base: Weights, expected: dict[str, np.ndarray]) -> float:
    """Check that the changed model without its whole change is the base, and return the largest difference of losses.

    This finds a matrix that was read transposed and a parameter that was forgotten.

    Raises:
        RuntimeError: where a loss differs by more than rounding explains.
    """
    weights = removal.weights(LARGEST, removal.most)
    matrices = {change.matrix.parameter for change in removal.changes}
    bench.put({name: tensor if name in matrices else base[name] for name, tensor in weights.items()})
    apart = max(float(abs(sums - expected[name])[:, 0].max()) for name, sums in bench.sums().items())
    # The losses of the tests' stories differ by less than 0.001 nats, the rounding of float32.
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
    """Score the models, then the second one with its change removed and with units pruned.

    Returns:
        The trials; the difference of `check_base`, in nats of a story; and the check of the gates that prune.
    """
    names = [FIRST, SECOND, *(label for label, _, _ in models[2:])]
    trials = []
    for name, (_, weights, _) in progress(list(zip(names, models, strict=True)), "scoring", "models", len(models)):
        bench.put(weights)
        trials.append(Trial(name, "finding", 0, bench.sums(), write(bench.model)))
    removal = Removal(models[1][1], changes, seed)
    apart = check_base(bench, removal, models[0][1], trials[0].sums)
    trials += removal_trials(bench, removal, args.directions, write)
    if args.prune == "no":
        return trials, apart, None
    bench.put(models[1][1])
    anatomy = anatomy_of(bench.model, models[1][0])
    first = next(iter(texts.ranking.values()))[0]
    check = check_gates(anatomy, args.prune, first.input_ids[: bench.window].tolist())
    effects = [
        unit_effects(anatomy, args.prune, documents, bench.window, bench.batch_size, f"ranking {args.prune}")
        for documents in texts.ranking.values()
    ]
    pruning = Pruning.by_effect(*effects)
    seeds = range(seed, seed + args.random_draws)
    trials += pruning_trials(bench, anatomy, args.prune, pruning, args.prune_shares, seeds, write)
    return trials, apart, check
