"""Patching: each part of a recipient in turn gives what it gives in a donor, and what follows is scored.

The donor's activations come from its own undisturbed run on its own text.  What is below the part in the recipient is
as always, what is above goes on from the swapped activations; so a part closes the gap between the two as far as the
difference that matters passes through it.  Disturbances of the same place are the controls:

- `random direction`: what the recipient computes plus, at each token, a random direction as long as the difference to
  the donor there: as large a disturbance, which means nothing.
- `another text`: what the donor computes on another text at that position.
- `another token`: the differences to the donor, each at another token of the text.  What this closes does not depend
  on the token: the donor differs by the same everywhere.

Shape suffixes: N = texts, B = those of a batch, T = tokens, K = kept tokens of a batch, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lm_trials.console import progress
from lm_trials.probing.activation_store import padded
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import Activations, Capture
from lm_trials.probing.interventions import ModelPart, Patched
from lm_trials.probing.patching.sides import Target
from lm_trials.probing.patching.tasks import Spot, Task

SWAP, RANDOM, OTHER, MOVED = "swap", "random direction", "another text", "another token"
RECIPIENT, DONOR = "recipient", "donor"
CHECKED_TEXTS = 4
ROUNDING = 1e-4


@dataclass
class Scores:
    """What came out of a sweep: the (N,) scores of the texts by run and measure.

    Attributes:
        runs: by (spot, target, kind), of swaps; by ("", None, RECIPIENT or DONOR), of the models as they are.
    """

    runs: dict[tuple[str, Target | None, str], dict[str, np.ndarray]] = field(default_factory=dict)

    def add(self, run: tuple[str, Target | None, str], numbers: Sequence[int], count: int, scores: dict) -> None:
        """Add the scores of a batch."""
        for measure, values_B in scores.items():
            values_N = self.runs.setdefault(run, {}).setdefault(measure, np.full(count, np.nan))
            values_N[numbers] = values_B


def run_logits(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return a model's logits of a padded batch, without a cache."""
    device = anatomy_of(model).model.device
    with torch.inference_mode():
        return model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False).logits


def captured_rows(
    model: Any, documents: Sequence[np.ndarray], places: Sequence[Sequence[int]], targets: Sequence[Target]
) -> Activations:
    """Return what a model computes on a batch of texts, at the positions that are swapped."""
    sites: dict[str, list[int]] = {}
    for target in targets:
        sites.setdefault(target.part.site, []).append(target.part.layer)
    with Capture(model, {site: sorted(set(layers)) for site, layers in sites.items()}, places) as capture:
        run_logits(model, *padded(documents))
    return capture.activations


def rows_of(found: Activations, part: ModelPart, num_heads: int) -> torch.Tensor:
    """Return the (K, D) activations of a part."""
    rows_KD = found.of(part.site, part.layer)
    if part.head is None:
        return rows_KD
    size = rows_KD.shape[1] // num_heads
    return rows_KD[:, part.head * size : (part.head + 1) * size]


def moved_rows(
    own_KD: torch.Tensor, donor_KD: torch.Tensor, text_K: np.ndarray, numbers: Sequence[int], seed: int
) -> torch.Tensor:
    """Return what the recipient computes plus the difference to the donor at another token of the same text.

    The draws depend on the seed and the text's number alone.  The difference of a text's one token stays where it is.

    >>> own_KD, donor_KD = torch.zeros(3, 2), torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    >>> rows_KD = moved_rows(own_KD, donor_KD, np.array([0, 0, 0]), numbers=[7], seed=0)
    >>> sorted(rows_KD[:, 0].tolist()), bool((rows_KD == donor_KD).any())
    ([1.0, 3.0, 5.0], False)
    """
    source_K = np.arange(len(text_K))
    for row, number in enumerate(numbers):
        (places,) = np.nonzero(text_K == row)
        # A random order of the tokens, each of which gets the difference of the one before in it: never its own.
        order = np.random.default_rng([seed, number]).permutation(places)
        source_K[order] = np.roll(order, 1)
    return own_KD + (donor_KD - own_KD)[source_K]


def random_rows(
    own_KD: torch.Tensor, donor_KD: torch.Tensor, text_K: np.ndarray, numbers: Sequence[int], seed: int
) -> torch.Tensor:
    """Return what the recipient computes plus random directions, each as long as the difference to the donor there.

    The draws depend on the seed and the text's number alone.

    >>> rows_KD = random_rows(torch.zeros(1, 3), torch.tensor([[0.0, 3, 4]]), np.array([0]), numbers=[7], seed=0)
    >>> round(float(rows_KD.norm()), 5), bool(rows_KD[0, 0] != 0)
    (5.0, True)
    """
    lengths_K1 = (donor_KD - own_KD).norm(dim=1, keepdim=True)
    directions_KD = torch.empty_like(own_KD)
    for row, number in enumerate(numbers):
        (places,) = np.nonzero(text_K == row)
        draws = np.random.default_rng([seed, number, 1]).normal(size=(len(places), own_KD.shape[1]))
        directions_KD[places] = torch.from_numpy(draws).to(own_KD)
    return own_KD + directions_KD * (lengths_K1 / directions_KD.norm(dim=1, keepdim=True))


def first_kinds(target: Target) -> list[str]:
    """Return how every target is swapped; a head has the other heads beside it."""
    return [SWAP] if target.component == "heads" else [SWAP, RANDOM]


def control_kinds(target: Target, task: Task) -> list[str]:
    """Return the further controls of a target that was chosen, as far as the texts and positions give them."""
    several = all(min(map(len, spot.recipient_N)) > 1 for spot in task.spots)
    others = len({ids_T.tobytes() for ids_T in task.donor_ids}) > 1
    kinds = [RANDOM, *([OTHER] if others else []), *([MOVED] if several else [])]
    return [kind for kind in kinds if kind not in first_kinds(target)]


def sweep(
    donor: Any,
    recipient: Any,
    task: Task,
    plan: Mapping[Target, Sequence[str]],
    batch_size: int,
    seed: int,
    description: str,
    scores: Scores | None = None,
) -> Scores:
    """Score both models as they are, and the recipient with each target of the plan swapped or disturbed.

    Which text stands in for another, and which token for another, does not depend on the batches.

    Args:
        plan: by target, how it is swapped.
        scores: of an earlier sweep, which are added to; the models as they are, are in them.
    """
    order = sorted(range(len(task)), key=lambda number: -len(task.recipient_ids[number]))
    partner = _partners(task.donor_ids, order)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    plain = scores is None
    scores, count = scores or Scores(), len(task)
    runs = 2 * plain + len(task.spots) * sum(map(len, plan.values()))
    steps = iter(progress(_steps(batches, runs), description, "texts", runs * count, size=lambda step: len(step)))
    for numbers in batches:
        for name, model, side in ((RECIPIENT, recipient, task.recipient_ids), (DONOR, donor, task.donor_ids)) * plain:
            next(steps)
            documents = [side[number] for number in numbers]
            logits_BTV = run_logits(model, *padded(documents))
            lengths = [len(ids_T) for ids_T in documents]
            scores.add(("", None, name), numbers, count, task.scores(numbers, logits_BTV, lengths))
        for spot in task.spots:
            for target, kind, found in _swaps(donor, recipient, task, spot, plan, numbers, partner, seed):
                next(steps)
                scores.add((spot.name, target, kind), numbers, count, found)
    next(steps, None)
    return scores


def _partners(donor_ids: Sequence[np.ndarray], order: Sequence[int]) -> dict[int, int]:
    """Return for each text the next in order, of like length, that is another: a copy would disturb nothing."""
    found = {}
    for place, number in enumerate(order):
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        own = donor_ids[number]
        found[number] = next((other for other in others if not np.array_equal(donor_ids[other], own)), number)
    return found


def _steps(batches: Sequence[Sequence[int]], runs: int) -> Iterator[Sequence[int]]:
    """Yield each batch as often as it is run, for the bar."""
    for numbers in batches:
        for _ in range(runs):
            yield numbers


def _swaps(
    donor: Any,
    recipient: Any,
    task: Task,
    spot: Spot,
    plan: Mapping[Target, Sequence[str]],
    numbers: Sequence[int],
    partner: dict[int, int],
    seed: int,
) -> Iterator[tuple[Target, str, dict[str, np.ndarray]]]:
    """Yield the scores of a batch with each target swapped, disturbed in place, and taken from another text."""
    heads = anatomy_of(recipient).num_heads
    documents = [task.recipient_ids[number] for number in numbers]
    lengths = [len(ids_T) for ids_T in documents]
    ids_BT, mask_BT = padded(documents)
    places = [spot.recipient_N[number] for number in numbers]
    targets = list(plan)
    own = captured_rows(recipient, documents, places, targets)
    given = captured_rows(
        donor, [task.donor_ids[number] for number in numbers], [spot.donor_N[number] for number in numbers], targets
    )
    others = [task.donor_ids[partner[number]] for number in numbers]
    wrapped = [[place % len(ids_T) for place in spot.donor_N[n]] for n, ids_T in zip(numbers, others, strict=True)]
    wanted = [target for target, kinds in plan.items() if OTHER in kinds]
    other = captured_rows(donor, others, wrapped, wanted) if wanted else None
    text_K = own.text_N.numpy()
    for target, kinds in plan.items():
        part = target.part
        own_KD, given_KD = rows_of(own, part, heads), rows_of(given, part, heads)
        for kind in kinds:
            if kind == SWAP:
                rows_KD = given_KD
            elif kind == OTHER:
                rows_KD = rows_of(other, part, heads)  # type: ignore[arg-type]
            else:
                disturbed = moved_rows if kind == MOVED else random_rows
                rows_KD = disturbed(own_KD, given_KD, text_K, numbers, seed)
            with Patched(recipient, {part: rows_KD}, positions=places):
                logits_BTV = run_logits(recipient, ids_BT, mask_BT)
            yield target, kind, task.scores(numbers, logits_BTV, lengths)


@dataclass(frozen=True)
class SwapCheck:
    """What swapping must and must not do, seen on some texts.

    Attributes:
        itself: largest change of a logit where each target is swapped for the recipient's own activations.
        whole: largest distance from the donor's scores where all that follows is the donor's.
        targets, texts: how many were checked.
    """

    itself: float
    whole: float
    targets: int
    texts: int

    def __str__(self) -> str:
        same = "nothing" if self.itself == 0 else f"logits by at most {self.itself:.1e}"
        equal = "is the donor exactly" if self.whole == 0 else f"is the donor within {self.whole:.1e}"
        return (
            f"a model swapped with itself, part by part ({self.targets}), changes {same}, and one that is swapped "
            f"whole {equal} ({self.texts} text{'s' if self.texts > 1 else ''})"
        )


def check_swaps(donor: Any, recipient: Any, task: Task, targets: Sequence[Target]) -> SwapCheck:
    """Check both ends on the first texts: swapped with itself nothing changes, swapped whole it is the donor.

    Whole: what the output head says, of two models; of one model on two prompts the last hidden state of the last
    token.

    Raises:
        RuntimeError: where either is not so; then no number of the probe would mean what it says.
    """
    numbers = list(range(min(CHECKED_TEXTS, len(task))))
    documents = [task.recipient_ids[number] for number in numbers]
    donated = [task.donor_ids[number] for number in numbers]
    spot, batch = task.spots[0], padded(documents)
    places = [spot.recipient_N[number] for number in numbers]
    heads = anatomy_of(recipient).num_heads
    plain_BTV = run_logits(recipient, *batch)
    own = captured_rows(recipient, documents, places, targets)
    itself = 0.0
    for target in targets:
        with Patched(recipient, {target.part: rows_of(own, target.part, heads)}, positions=places):
            itself = max(itself, float((run_logits(recipient, *batch) - plain_BTV).abs().max()))
    depth = anatomy_of(recipient).num_blocks
    of_donor_BTV = run_logits(donor, *padded(donated))
    if donor is recipient:
        with Capture(donor, {"hidden": [depth]}, 1) as capture:
            run_logits(donor, *padded(donated))
        patch = Patched(recipient, {ModelPart("hidden", depth): capture.activations.of("hidden", depth)}, positions=1)
    else:
        patch = Patched(recipient, [ModelPart("logits", depth)], donor=donor)
    with patch:
        whole_BTV = run_logits(recipient, *batch)
    expected = task.scores(numbers, of_donor_BTV, [len(ids_T) for ids_T in donated])
    got = task.scores(numbers, whole_BTV, [len(ids_T) for ids_T in documents])
    whole = max(float(np.abs(expected[measure] - got[measure]).max()) for measure in expected)
    check = SwapCheck(itself, whole, len(targets), len(numbers))
    # Hooks replace numbers by equal numbers, so on a CPU not a bit may differ; kernels elsewhere may vary by rounding.
    allowed = 0.0 if plain_BTV.device.type == "cpu" else ROUNDING
    if not (itself <= allowed and whole <= ROUNDING * max(1.0, max(map(len, documents)))):
        raise RuntimeError(f"{check}; that is more than rounding explains, so swapping does not do what it says")
    return check
