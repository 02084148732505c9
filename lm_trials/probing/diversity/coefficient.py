"""Diversity: the expected distance between batches of a data set, with its controls.

Diversity coefficient and cross-diversity as in Lee, Miranda, Sundar and Koyejo (arXiv 2306.13840, section 2.2): the
mean, over pairs of different batches, of Task2Vec's cosine distance between their embeddings by one probe network.

Shape suffixes: N = batches of all groups together, F = filters.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, progress
from lm_trials.models.reference import ModelReference, chosen_window, load_config, load_model, load_tokenizer_of
from lm_trials.models.reference import resolve_model as resolve
from lm_trials.models.shapes import build_model
from lm_trials.probing.diversity.batches import CONTROLS, TextSet, control_batches, token_batches
from lm_trials.probing.diversity.fisher import ProbeNetwork, TaskEmbedding
from lm_trials.probing.diversity.flags import DiversityArguments
from lm_trials.probing.diversity.pairs import mean_between, mean_within, task_distances, without_noise
from lm_trials.probing.subjects import on_device
from lm_trials.probing.tables import ProbeTable

UNIT = "cosine distance of batches"
TRAINED, RANDOM = "as given", "random weights"
PAPER = ("all layers", "as drawn")


@dataclass(frozen=True)
class Group:
    """Batches of one data set, mixture or control; a batch is a list of the (T,) ids of texts."""

    name: str
    kind: str
    batches: list[list[np.ndarray]]


def places_of(groups: Sequence[Group]) -> dict[str, slice]:
    """Return the rows of each group in a table of all batches, group by group."""
    ends = itertools.accumulate(len(group.batches) for group in groups)
    return {group.name: slice(end - len(group.batches), end) for group, end in zip(groups, ends, strict=True)}


@dataclass(frozen=True)
class GroupEmbeddings:
    """The embeddings and distances of all groups by one probe.

    Attributes:
        probe: `TRAINED` or `RANDOM`.
        groups: in the order of the rows.
        embeddings: of each group's batches.
        distances: the (N, N) distances of all batches, group by group, by (layers, noise): all layers or without
            token and position tables; with the noise of the random draws or without it.
    """

    probe: str
    groups: list[Group]
    embeddings: list[list[TaskEmbedding]]
    distances: dict[tuple[str, str], np.ndarray]

    @property
    def distances_NN(self) -> np.ndarray:
        """The distances as the paper defines them."""
        return self.distances[PAPER]

    def of_data(self) -> tuple[np.ndarray, dict[str, slice]]:
        """Return the distances of the data sets and mixtures without controls, and the rows of each.

        Controls are several times farther from everything than data sets are from each other: in one figure the
        differences between data sets would not be visible.
        """
        kept, places = [group for group in self.groups if group.kind != "control"], places_of(self.groups)
        rows_M = np.concatenate([np.r_[places[group.name]] for group in kept])
        return self.distances_NN[np.ix_(rows_M, rows_M)], places_of(kept)

    def rows(self) -> ProbeTable:
        """Return the diversity of each group and the cross-diversity of each two data sets, with intervals."""
        rows, places = ProbeTable(), places_of(self.groups)
        names = [group.name for group in self.groups if group.kind == "data set"]
        for (layers, noise), distances_NN in self.distances.items():
            how = {"probe": self.probe, "layers": layers, "noise": noise}
            for group in self.groups:
                own = places[group.name]
                what = {"measure": "diversity", "data_set": group.name, "kind": group.kind}
                rows.add(mean_within(distances_NN[own, own], UNIT), what | how)
            for first, second in itertools.combinations(names, 2):
                what = {"measure": "cross-diversity", "data_set": f"{first} × {second}", "kind": "pair"}
                rows.add(mean_between(distances_NN[places[first], places[second]], UNIT), what | how)
        return rows

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return the size of each group and the loss before and after the final layer was fitted."""
        return {
            group.name: {
                "batches": len(of_group),
                "predicted_tokens": sum(embedding.places for embedding in of_group),
                "nats_per_token_before_fitting": float(np.mean([embedding.loss for embedding in of_group])),
                "nats_per_token_after_fitting": float(np.mean([embedding.fitted_loss for embedding in of_group])),
            }
            for group, of_group in zip(self.groups, self.embeddings, strict=True)
        }


def find_probe(args: DiversityArguments) -> tuple[ModelReference, PreTrainedTokenizerBase]:
    """Find the model and its tokenizer and check that they fit the texts, without loading the weights.

    Raises:
        UsageError: for a missing model, texts longer than its positions, or the tokenizer of another model.
    """
    try:
        reference = resolve(args.model_name_or_path)
        config = load_config(reference)
        tokenizer = load_tokenizer_of(reference, args.tokenizer_name)
    except UsageError as error:
        if Path(args.model_name_or_path).is_dir():
            raise
        raise UsageError(f"{error}; offline, use a local model, for example --model_name_or_path runs/demo") from None
    chosen_window(args.max_length, config, "--max_length")  # raises beyond the positions
    return reference, tokenizer


def load_probes(reference: ModelReference, args: DiversityArguments) -> dict[str, ProbeNetwork]:
    """Load the probe network and, with `--random_weights`, one of the same shape with random weights."""
    trained = ProbeNetwork(on_device(load_model(reference), args), args)
    if not args.random_weights:
        return {TRAINED: trained}
    random = build_model(trained.model.config, args.seed)
    return {TRAINED: trained, RANDOM: ProbeNetwork(on_device(random, args), args)}


def make_groups(sets: Sequence[TextSet], tokenizer: PreTrainedTokenizerBase, args: DiversityArguments) -> list[Group]:
    """Tokenize the data sets and make their controls; the upper bound comes last."""
    groups = [
        Group(
            texts.name,
            "mixture" if texts.is_mixture and len(sets) > 1 else "data set",
            token_batches(texts, tokenizer, args.max_length),
        )
        for texts in sets
    ]
    if not args.num_control_batches:
        return groups
    like = groups[0].batches
    controls = {
        name: Group(name, "control", control_batches(name, like, args.num_control_batches, tokenizer, args.seed))
        for name in CONTROLS
    }
    upper = controls.pop("random tokens")
    return [*controls.values(), *groups, upper]


def embed_groups(probes: Mapping[str, ProbeNetwork], groups: list[Group]) -> list[GroupEmbeddings]:
    """Embed every batch by every probe and compute all distances, with a progress bar.

    The random draws of a batch depend on the seed, its group's name and its number, so the embeddings of a data set
    do not depend on what else is measured.
    """
    jobs = [(probe, group, number) for probe in probes for group in groups for number in range(len(group.batches))]
    total = sum(len(group.batches[number]) for _, group, number in jobs)
    embeddings: dict[tuple[str, str], list[TaskEmbedding]] = {}
    for name, group, number in progress(jobs, "embedding", "texts", total, lambda job: len(job[1].batches[job[2]])):
        embedding = probes[name].embed(group.batches[number], f"{group.name}:{number}")
        embeddings.setdefault((name, group.name), []).append(embedding)
    results = []
    for name, probe in probes.items():
        by_group = [embeddings[name, group.name] for group in groups]
        halves_2NF = np.stack([embedding.halves_2F for of_group in by_group for embedding in of_group], axis=1)
        distances: dict[tuple[str, str], np.ndarray] = {}
        for layers, kept_F in (("all layers", slice(None)), ("without tables", ~probe.is_table_F)):
            kept_2NF = halves_2NF[:, :, kept_F]
            distances_NN = task_distances(kept_2NF.mean(axis=0))
            distances[layers, "as drawn"] = distances_NN
            distances[layers, "removed"] = without_noise(distances_NN, np.stack([*map(task_distances, kept_2NF)]))
        results.append(GroupEmbeddings(name, groups, by_group, distances))
    return results
