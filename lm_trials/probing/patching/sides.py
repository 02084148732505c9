"""Patching sides: the two runs that something is swapped between, and the components of a model that are swapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_trials.probing.anatomy import check_blocks, check_heads
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.interventions import ModelPart
from lm_trials.probing.subjects import Subject, load_subject

SITES = {"embeddings": "hidden", "residual": "hidden", "attention": "attention_output", "mlp": "mlp", "heads": "heads"}


@dataclass(frozen=True)
class Target:
    """One component that is swapped: a name of `flags.COMPONENTS`, its block (embeddings have none) and its head."""

    component: str
    block: int | None = None
    head: int | None = None

    @property
    def part(self) -> ModelPart:
        """Where it is in a model; the stream after block b is hidden state b + 1."""
        return ModelPart(SITES[self.component], (self.block or 0) + (self.component == "residual"), self.head)

    def __str__(self) -> str:
        if self.component == "embeddings":
            return "the embeddings"
        if self.component == "residual":
            return f"the residual stream after block {self.block}"
        if self.component == "heads":
            return f"head {self.head} of block {self.block}"
        return f"the {'MLP' if self.component == 'mlp' else 'attention'} of block {self.block}"


def targets_of(
    subject: Subject, components: Sequence[str], layers: Sequence[int] = (), heads: Sequence[int] = ()
) -> list[Target]:
    """Return what is swapped, from the bottom to the top of a model, by its configuration.

    Raises:
        UsageError: for a block or head that the model does not have.
    """
    blocks, chosen = list(range(subject.depth)), list(range(subject.num_heads))
    if layers:
        blocks = list(dict.fromkeys(check_blocks(layers, subject.depth, subject.reference.name, "--layers")))
    if heads:
        chosen = list(dict.fromkeys(check_heads(heads, subject.num_heads, subject.reference.name, "--heads")))
    found = [Target("embeddings")] if "embeddings" in components else []
    for block in blocks:
        found += [Target("heads", block, head) for head in chosen if "heads" in components]
        found += [Target(name, block) for name in ("attention", "mlp", "residual") if name in components]
    return found


@dataclass(frozen=True)
class Side:
    """One of the two runs: a model, or one model's run on one of two prompts."""

    label: str
    model: Any
    subject: Subject


def load_sides(subjects: Sequence[Subject], args: SubjectArguments) -> tuple[Side, Side]:
    """Load both models; with one model, its runs on the two prompts are the sides."""
    models = [load_subject(subject, args) for subject in subjects]
    labels = [subject.label for subject in subjects] if len(subjects) > 1 else ["prompt", "other prompt"]
    return Side(labels[0], models[0], subjects[0]), Side(labels[1], models[-1], subjects[-1])
