"""Diversity: the expected distance between batches of a data set, beside its controls.

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
from lm_trials.estimates import Estimate
from lm_trials.models.reference import ModelReference, load_config, load_model, load_tokenizer_of, positions_of
from lm_trials.models.reference import resolve_model as resolve
from lm_trials.probing.diversity.batches import CONTROLS, TextSet, control_batches, token_batches
from lm_trials.probing.diversity.fisher import ProbeNetwork, ProbeSettings, TaskEmbedding
from lm_trials.probing.diversity.flags import DiversityArguments
from lm_trials.probing.diversity.pairs import mean_between, mean_within, task_distances, without_noise
from lm_trials.probing.subjects import device_of, random_weights
from lm_trials.probing.tables import ProbeTable

UNIT = "cosine distance of batches"
TRAINED, RANDOM = "as given", "random weights"
PAPER = ("all layers", "as drawn")


@dataclass(frozen=True)
class Group:
    """Batches that belong together: of a data set, a mixture or a control, each batch a list of texts' (T,) ids."""

    name: str
    kind: str
    batches: list[list[np.ndarray]]


@dataclass(frozen=True)
class GroupEmbeddings:
    """What one probe made of all groups.

    Attributes:
        probe: `TRAINED` or `RANDOM`.
        groups: the groups, in the order of the rows.
        embeddings: of each group's batches.
        distances: the (N, N) distances of all batches, group by group, by (layers, noise): of all layers or
            without the rows of token and position tables; with the noise of drawing or without it.
    """

    probe: str
    groups: list[Group]
    embeddings: list[list[TaskEmbedding]]
    distances: dict[tuple[str, str], np.ndarray]

    @property
    def distances_NN(self) -> np.ndarray:
        """The distances as the paper defines them."""
        return self.distances[PAPER]

    @property
    def places(self) -> dict[str, slice]:
        """Where each group stands in the distances."""
        ends = list(itertools.accumulate(len(group.batches) for group in self.groups))
        return {g.name: slice(end - len(g.batches), end) for g, end in zip(self.groups, ends, strict=True)}

    def of_data(self) -> tuple[np.ndarray, dict[str, slice]]:
        """Return the distances of the data sets and mixtures alone, and where each of them stands.

        Controls are several times as far from everything as two data sets: in one picture they would hide these.
        """
        kept = [group for group in self.groups if group.kind != "control"]
        rows_M = np.concatenate([np.r_[self.places[group.name]] for group in kept])
        alone = GroupEmbeddings(self.probe, kept, [], {PAPER: self.distances_NN[np.ix_(rows_M, rows_M)]})
        return alone.distances_NN, alone.places

    def rows(self) -> ProbeTable:
        """Return the diversity of each group and the cross-diversity of each two data sets, with intervals."""
        rows = ProbeTable()
        for (layers, noise), distances_NN in self.distances.items():

            def add(measure: str, name: str, kind: str, found: Estimate) -> None:
                what = {"measure": measure, "data_set": name, "kind": kind}
                rows.add(found, what | {"probe": self.probe, "layers": layers, "noise": noise})  # noqa: B023

            for group in self.groups:
                place = self.places[group.name]
                add("diversity", group.name, group.kind, mean_within(distances_NN[place, place], UNIT))
            named = [group.name for group in self.groups if group.kind == "data set"]
            for first, second in itertools.combinations(named, 2):
                found = mean_between(distances_NN[self.places[first], self.places[second]], UNIT)
                add("cross-diversity", f"{first} × {second}", "pair", found)
        return rows

    def facts(self) -> dict[str, dict[str, Any]]:
        """Say of each group how much of it was seen and what the fitting of the final layer did."""
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
        UsageError: for a model that cannot be had, texts longer than its positions, or a tokenizer of another model.
    """
    try:
        reference = resolve(args.model_name_or_path)
        config = load_config(reference)
        tokenizer = load_tokenizer_of(reference, args.tokenizer_name)
    except UsageError as error:
        if Path(args.model_name_or_path).is_dir():
            raise
        raise UsageError(f"{error}; without a network name a local model, as --model_name_or_path runs/demo") from None
    positions = positions_of(config)
    if positions is not None and args.max_length > positions:
        raise UsageError(f"--max_length {args.max_length}: {reference.name} sees {positions} tokens; give at most that")
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(tokenizer.get_vocab().values())
    if vocab_size is not None and largest >= vocab_size:
        raise UsageError(
            f"{reference.name} has {vocab_size:,} embeddings and the tokenizer's ids go up to {largest:,}; "
            "give the tokenizer it was trained with by --tokenizer_name"
        )
    return reference, tokenizer


def load_probes(reference: ModelReference, args: DiversityArguments) -> dict[str, ProbeNetwork]:
    """Load the probe, and beside it, if asked, one with random weights of the same shape."""
    settings = ProbeSettings(
        args.finetune_steps, args.finetune_learning_rate, args.fisher_draws, args.fisher_drawing, args.seed
    )
    trained = ProbeNetwork(load_model(reference).to(device_of(args)), settings)
    if not args.random_weights:
        return {TRAINED: trained}
    random = random_weights(trained.model.config, args.seed).float().to(device_of(args))
    return {TRAINED: trained, RANDOM: ProbeNetwork(random, settings)}


def make_groups(sets: Sequence[TextSet], tokenizer: PreTrainedTokenizerBase, args: DiversityArguments) -> list[Group]:
    """Tokenise the data sets and make the controls beside them; the upper bound comes last."""
    groups = [
        Group(texts.name, "mixture" if texts.is_mixture and len(sets) > 1 else "data set",
              token_batches(texts, tokenizer, args.max_length))
        for texts in sets
    ]  # fmt: skip
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
    """Embed every batch by every probe and measure all distances; a bar shows the time that is left.

    A batch's draws depend on the seed, its group's name and its number, so a data set has the same embeddings
    whatever is measured beside it.
    """
    jobs = [(probe, group, number) for probe in probes for group in groups for number in range(len(group.batches))]
    total = sum(len(group.batches[number]) for _, group, number in jobs)
    embeddings: dict[tuple[str, str], list[TaskEmbedding]] = {}
    for probe, group, number in progress(jobs, "embedding", "texts", total, lambda job: len(job[1].batches[job[2]])):
        embedding = probes[probe].embed(group.batches[number], f"{group.name}:{number}")
        embeddings.setdefault((probe, group.name), []).append(embedding)
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
