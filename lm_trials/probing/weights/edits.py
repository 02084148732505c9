"""Edits of weights in memory: removing the largest directions of a change, and pruning neurons or heads.

Pruning tests the hypothesis of the deletion-recovery paper (arXiv 2311.12786): if fine-tuning only wraps an ability,
then a few units are the wrapper, and pruning them restores the ability.  Units are ranked by the estimated fall of the
loss without each, on other stories than those scored: the gradient of a gate that multiplies the unit's output
(skeletonization, Mozer and Smolensky 1989) minus half its Fisher information (Theis et al. 2018).  The gradient alone
ranks first the units without which the model breaks.

Shape suffixes: B = stories of a batch, T = tokens, U = units of a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lm_trials.console import UsageError, progress
from lm_trials.evaluation.losses import IGNORED, Document, Window, per_story_windows, story_losses
from lm_trials.probing.anatomy import Anatomy
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.weights.changes import MatrixChange, Weights

SECOND_LAYERS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2")
FIRST, SECOND = "first model", "second model"
LARGEST, BACK, OWN, NOISE = "largest directions", "straight back", "directions at random", "noise of the same size"
REMOVALS = (LARGEST, BACK, OWN, NOISE)
"""What is removed of each matrix's change: its k largest singular directions; as much of its norm, all directions
alike; k of its singular directions at random; k random directions with the same singular values."""


class Removal:
    """Removes parts of a change, matrix by matrix; vectors (norms, biases) are left unchanged.

    Args:
        after: the changed model's parameters.
        changes: of each matrix.
        seed: of the random directions, which differ for each k.
    """

    def __init__(self, after: Weights, changes: Sequence[MatrixChange], seed: int) -> None:
        self.after, self.changes, self.seed = after, changes, seed

    @property
    def most(self) -> int:
        """Number of directions of the largest matrix."""
        return max(len(change.s_R) for change in self.changes)

    def weights(self, method: str, directions: int) -> Weights:
        """Return the parameters without `directions` directions of each change, by one of `REMOVALS`."""
        # 100,003 exceeds any number of directions, so that no two of (seed, number) share their draws.
        generator = torch.Generator().manual_seed(self.seed * 100_003 + directions)
        kept = {name: tensor.clone() for name, tensor in self.after.items()}
        for change in self.changes:
            change.matrix.of(kept).sub_(removed_part(change, method, directions, generator))
        return kept


def removed_part(
    change: MatrixChange, method: str, directions: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return the part that is subtracted from a matrix, (O, I)."""
    u_OR, s_R, v_RI = change.u_OR, change.s_R, change.v_RI
    top = min(directions, len(s_R))
    if method == BACK:
        norm = float(s_R.norm())
        # The strongest control: in the Twist deletion, interpolating by the same norm undid more than removing the
        # largest directions.
        scale = float(s_R[:top].norm()) / norm if norm else 0.0
        return scale * ((u_OR * s_R) @ v_RI)
    if method == NOISE:
        outputs, inputs = (
            torch.linalg.qr(torch.randn(width, top, dtype=torch.float64, generator=generator))[0]
            for width in change.shape
        )
        return (outputs * s_R[:top]) @ inputs.T
    chosen = torch.arange(top) if method == LARGEST else torch.randperm(len(s_R), generator=generator)[:top]
    return (u_OR[:, chosen] * s_R[chosen]) @ v_RI[chosen]


class Workbench:
    """One model in memory that takes the parameters of every variant and scores the stories.

    Args:
        model: without an adapter; its own parameters are overwritten.
        documents: by set, the stories to score.
    """

    def __init__(self, model: PreTrainedModel, documents: dict[str, list[Document]], window: int, batch_size: int):
        self.model = model.requires_grad_(False)
        self.documents, self.window, self.batch_size = documents, window, batch_size

    @torch.no_grad()
    def put(self, weights: Weights) -> None:
        """Copy parameters into the model."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])

    def sums(self) -> dict[str, np.ndarray]:
        """Return by set the summed nats and the tokens of each story, (N, 2)."""
        found = {}
        for name, documents in self.documents.items():
            losses = story_losses(self.model, documents, self.window, batch_size=self.batch_size)
            found[name] = np.array([[story.nats, story.tokens] for story in losses], dtype=np.float64)
        return found


class Gates(AbstractContextManager):
    """Multiplies the output of each unit of each block by a gate, inside the `with`: 1 keeps it, 0 prunes it.

    Args:
        kind: `neurons` of the MLPs, gated before their last layer, or attention `heads`, before the output projection.
        gates: by block, (U,), or (B, U) with those of each text; default ones.
    """

    def __init__(self, anatomy: Anatomy, kind: str, gates: Sequence[torch.Tensor] | None = None) -> None:
        self.layers = [_written_by(anatomy, kind, block) for block in range(anatomy.num_blocks)]
        self.widths = [  # inputs of a Linear, or of GPT-2's Conv1D, which is transposed
            layer.in_features if isinstance(layer, nn.Linear) else layer.get_parameter("weight").shape[0]
            for layer in self.layers
        ]
        self.units = [anatomy.num_heads if kind == "heads" else width for width in self.widths]
        # A gate's gradient is a sum over the tokens of a story, so at least float32.
        self.device, self.dtype = anatomy.model.device, torch.promote_types(anatomy.model.dtype, torch.float32)
        self.gates = list(gates) if gates is not None else self.ones()
        self._handles: list[Any] = []

    def ones(self, *batch: int, requires_grad: bool = False) -> list[torch.Tensor]:
        """Return gates of one."""
        shapes = [(*batch, units) for units in self.units]
        return [torch.ones(s, device=self.device, dtype=self.dtype, requires_grad=requires_grad) for s in shapes]

    def __enter__(self) -> Gates:
        for block, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(self._gated(block)))
        return self

    def _gated(self, block: int) -> Callable[..., tuple[torch.Tensor]]:
        columns = self.widths[block] // self.units[block]

        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            gate = self.gates[block].repeat_interleave(columns, dim=-1)
            return ((inputs[0] * (gate if gate.dim() == 1 else gate[:, None])).to(inputs[0].dtype),)

        return hook

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _written_by(anatomy: Anatomy, kind: str, block: int) -> nn.Module:
    """Return the layer whose inputs are a block's units."""
    if kind == "heads":
        return anatomy.projection(block)
    mlp = anatomy.mlp(block)
    for name in SECOND_LAYERS:
        if isinstance(layer := getattr(mlp, name, None), nn.Module):
            return layer
    if isinstance(mlp, nn.Linear):  # OPT has no MLP module: its second layer is in the block
        return mlp
    architecture = type(anatomy.model).__name__
    raise UsageError(f"--prune neurons: {anatomy.name} is a {architecture}; give --prune heads or --prune no")


def check_gates(anatomy: Anatomy, kind: str, ids_T: Sequence[int]) -> CaptureCheck:
    """Check that gates of one do not change a model's predictions.

    Raises:
        RuntimeError: where they do.
    """
    ids_BT = torch.as_tensor([list(map(int, ids_T))], device=anatomy.model.device)
    with torch.no_grad():
        plain = anatomy.model(input_ids=ids_BT, use_cache=False).logits.float().log_softmax(-1)
        with Gates(anatomy, kind):
            gated = anatomy.model(input_ids=ids_BT, use_cache=False).logits.float().log_softmax(-1)
    check = CaptureCheck(float((plain - gated).abs().max()), ids_BT.shape[1], (f"{kind} (gates of 1)",), 0.0)
    if not check.largest <= check.allowed:
        raise RuntimeError(f"{anatomy.name}: {check}; the gates change the model, so pruning would mean nothing")
    return check


def unit_effects(
    anatomy: Anatomy, kind: str, documents: Sequence[Document], window: int, batch_size: int, description: str
) -> list[np.ndarray]:
    """Return by block the (U,) estimated fall of the loss without each unit, in nats per token.

    The loss of a story is expanded to second order in the unit's gate, which goes from 1 to 0.  The curvature is
    approximated by the squared gradient, which is exact in expectation for a model that fits its data.

    Raises:
        UsageError: for stories without a token to predict.
    """
    windows = sorted(per_story_windows(enumerate(documents), window), key=lambda w: len(w.input_ids_T))
    tokens = sum(int((w.targets_T != IGNORED).sum()) for w in windows)
    if not tokens:
        raise UsageError("--dataset_name: the stories that rank units have no token to predict; give longer stories")
    batches = [windows[at : at + batch_size] for at in range(0, len(windows), batch_size)]
    with Gates(anatomy, kind) as gates:
        falls = [np.zeros(units) for units in gates.units]
        for batch in progress(batches, description, "stories", len(windows), len):
            gates.gates = gates.ones(len(batch), requires_grad=True)
            gradients = torch.autograd.grad(_nats(anatomy.model, batch), gates.gates)
            for fall_U, gradient_BU in zip(falls, gradients, strict=True):
                values_BU = gradient_BU.cpu().double().numpy()
                # First and second order: where a gradient is near 0 (a trained unit), the curvature term decides the
                # ranking.
                fall_U += (values_BU - values_BU**2 / 2).sum(axis=0) / tokens
    return falls


def _nats(model: PreTrainedModel, windows: Sequence[Window]) -> torch.Tensor:
    """Return the summed loss of windows, padded on the right, where a causal model cannot see."""
    longest, device = max(len(w.input_ids_T) for w in windows), model.device
    inputs_BT = torch.zeros(len(windows), longest, dtype=torch.long)
    targets_BT = torch.full((len(windows), longest), IGNORED)
    for row, window in enumerate(windows):
        inputs_BT[row, : len(window.input_ids_T)] = torch.from_numpy(window.input_ids_T)
        targets_BT[row, : len(window.targets_T)] = torch.from_numpy(window.targets_T)
    logits_BTV = model(input_ids=inputs_BT.to(device), use_cache=False).logits
    flat = logits_BTV.flatten(0, 1).to(torch.promote_types(logits_BTV.dtype, torch.float32))
    return nn.functional.cross_entropy(flat, targets_BT.flatten().to(device), ignore_index=IGNORED, reduction="sum")


@dataclass(frozen=True)
class Pruning:
    """An order of units, (block, unit), in which they are pruned."""

    units_by_block: list[int]
    order: list[tuple[int, int]]

    @classmethod
    def by_effect(cls, helped: Sequence[np.ndarray], spared: Sequence[np.ndarray] | None = None) -> Pruning:
        """Rank units, first those without which the loss on the deleted feature's stories falls most.

        Args:
            helped: `unit_effects` on these stories.
            spared: `unit_effects` on stories whose loss should not rise; a rise counts against a unit.

        >>> Pruning.by_effect([np.array([0.0, 2.0]), np.array([1.0])], [np.array([0.0, -5.0]), np.array([3.0])]).order
        [(1, 0), (0, 0), (0, 1)]
        """
        scores = [effect_U.copy() for effect_U in helped]
        for score_U, effect_U in zip(scores, spared or [], strict=spared is not None):
            score_U += np.minimum(effect_U, 0.0)
        places = [(block, unit) for block, score_U in enumerate(scores) for unit in range(len(score_U))]
        return cls(list(map(len, helped)), sorted(places, key=lambda place: -scores[place[0]][place[1]]))

    def at_random(self, seed: int) -> Pruning:
        """Return the same units in a random order."""
        order = np.random.default_rng(seed).permutation(len(self.order))
        return Pruning(self.units_by_block, [self.order[place] for place in order])

    def count(self, share: float) -> int:
        """Return the number of units of a share, at least one."""
        return max(1, round(share * len(self.order)))

    def gates(self, count: int, like: torch.Tensor) -> list[torch.Tensor]:
        """Return gates that prune the first `count` units."""
        gates = [torch.ones(units, device=like.device, dtype=like.dtype) for units in self.units_by_block]
        for block, unit in itertools.islice(self.order, count):
            gates[block][unit] = 0.0
        return gates


@dataclass(frozen=True)
class Trial:
    """One variant of a model, scored.

    Attributes:
        method: how it was made; `role`: finding or control.
        level: number of directions or units removed.
        sums: by set, nats and tokens of each story.
        written: how many generated stories have the feature, and of how many; None where none were generated.
        draws: the sums of each repetition of a random control; `sums` is then their mean.
    """

    method: str
    role: str
    level: int
    sums: dict[str, np.ndarray]
    written: tuple[int, int] | None = None
    draws: tuple[dict[str, np.ndarray], ...] = ()


Write = Callable[[PreTrainedModel], tuple[int, int] | None]


def removal_trials(bench: Workbench, removal: Removal, directions: Sequence[int], write: Write) -> Iterator[Trial]:
    """Score the model with more and more of the change removed, by each method; last with all of it."""
    levels = sorted({count for count in directions if count < removal.most})
    planned = [(method, count) for count in levels for method in REMOVALS] + [(LARGEST, removal.most)]
    for method, count in progress(planned, "removing directions", "models", len(planned)):
        bench.put(removal.weights(method, count))
        written = write(bench.model) if method != NOISE else None
        yield Trial(method, "finding" if method == LARGEST else "control", count, bench.sums(), written)


def pruning_trials(
    bench: Workbench,
    anatomy: Anatomy,
    kind: str,
    pruning: Pruning,
    shares: Sequence[float],
    seeds: Sequence[int],
    write: Write,
) -> Iterator[Trial]:
    """Score the model of the workbench with more and more units pruned: in their rank order, and at random by seed."""
    levels = sorted({pruning.count(share) for share in shares})
    orders = [pruning, *(pruning.at_random(seed) for seed in seeds)]
    like = next(anatomy.model.parameters())
    runs = iter(progress(range(len(levels) * len(orders)), f"pruning {kind}", "models", len(levels) * len(orders)))
    for count in levels:
        found, written = [], []
        for place, order in enumerate(orders):
            next(runs)
            with Gates(anatomy, kind, order.gates(count, like)):
                found.append(bench.sums())
                written += [write(anatomy.model)] if place < 2 else []  # generation is slow: only for one draw
        yield Trial(f"{kind} ranked", "finding", count, found[0], written[0])
        mean = {name: np.mean([sums[name] for sums in found[1:]], axis=0) for name in found[0]}
        yield Trial(f"{kind} at random", "control", count, mean, written[1], tuple(found[1:]))
    next(runs, None)
