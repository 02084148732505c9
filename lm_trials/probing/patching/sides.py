"""Patching sides: the two runs that something is swapped between, and the parts of a model that are swapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_trials.probing.anatomy import check_blocks, check_heads
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.interventions import ModelPart
from lm_trials.probing.patching.tasks import Task
from lm_trials.probing.subjects import Subject, load_subject

SITES = {"embeddings": "hidden", "residual": "hidden", "attention": "attention_output", "mlp": "mlp", "heads": "heads"}


@dataclass(frozen=True)
class Target:
    """One thing that is swapped.

    Attributes:
        component: a name of `flags.COMPONENTS`.
        block: which block's; None of the embeddings.
        head: which head, of heads.
    """

    component: str
    block: int | None = None
    head: int | None = None

    @property
    def part(self) -> ModelPart:
        """Where a model has it."""
        if self.component == "embeddings":
            return ModelPart("hidden", 0)
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

    @property
    def seed(self) -> int | None:
        """Of its training, where a `run.json` tells."""
        return self.subject.candidate.seed


@dataclass(frozen=True)
class Sides:
    """The two runs."""

    first: Side
    second: Side

    @property
    def models(self) -> list[Any]:
        """The loaded models, each once."""
        return [self.first.model] if self.first.model is self.second.model else [self.first.model, self.second.model]

    def directions(self, which: str, task: Task) -> list[tuple[Side, Side, Task]]:
        """Return donor, recipient and task of each direction that is asked for."""
        both = [(self.first, self.second, task), (self.second, self.first, task.reversed())]
        return both[which == "backward" : 1 if which == "forward" else 2]


def load_sides(subjects: Sequence[Subject], args: SubjectArguments) -> Sides:
    """Load both models; of one model, its runs on the two prompts are the sides."""
    models = [load_subject(subject, args) for subject in subjects]
    labels = [subject.label for subject in subjects] if len(subjects) > 1 else ["prompt", "other prompt"]
    return Sides(Side(labels[0], models[0], subjects[0]), Side(labels[1], models[-1], subjects[-1]))


def sites_of(targets: Sequence[Target]) -> list[str]:
    """Return the sites that are read of the donor."""
    return list(dict.fromkeys(target.part.site for target in targets))
