"""Patching: each component of a recipient in turn computes what it computes in a donor, and the output is scored.

The donor's activations come from its own undisturbed run on its own text.  Below the component the recipient is
unchanged, and everything above is recomputed; so a component closes the gap as far as the difference passes through it.
Controls disturb the same component:

- `random direction`: the recipient's activation plus, at each token, a random direction as long as the difference to
  the donor there.
- `another text`: the donor's activation on another text at that position.  No matched control: it costs up to 22 times
  the gap, where a random direction has the size of the difference.
- `another token`: the differences to the donor, each at another token of the text.  What this closes does not depend
  on the token.

Shape suffixes: N = texts, B = those of a batch, T = tokens, K = kept tokens of a batch, D = width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
# A defect of a hook shows on the first text; four texts usually differ in length, which checks the padding too.
CHECKED_TEXTS = 4
ROUNDING = 1e-4
Run = tuple[str, Target | None, str]
"""(spot, target, kind) of a swap; ("", None, RECIPIENT or DONOR) of the models unchanged."""
Scores = dict[Run, dict[str, np.ndarray]]
"""The (N,) scores of the texts by run and measure."""


def run_logits(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return a model's logits of a padded batch, without a cache."""
    device = anatomy_of(model).model.device
    with torch.inference_mode():
        return model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False).logits


def captured_rows(
    model: Any, documents: Sequence[np.ndarray], places: Sequence[Sequence[int]], targets: Iterable[Target]
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
        # Seeded by the text's number, so that a text has the same direction in every component: components are
        # compared paired.
        draws = np.random.default_rng([seed, number, 1]).normal(size=(len(places), own_KD.shape[1]))
        directions_KD[places] = torch.from_numpy(draws).to(own_KD)
    return own_KD + directions_KD * (lengths_K1 / directions_KD.norm(dim=1, keepdim=True))


def first_kinds(target: Target) -> list[str]:
    """Return how every target is swapped; heads are compared with the other heads, not with random directions."""
    return [SWAP] if target.component == "heads" else [SWAP, RANDOM]


def control_kinds(target: Target, task: Task) -> list[str]:
    """Return the further controls of a target that was selected, as far as the texts and positions allow."""
    kinds = [] if target.component != "heads" else [RANDOM]
    if len({ids_T.tobytes() for ids_T in task.donor_ids}) > 1:
        kinds.append(OTHER)
    if all(min(map(len, spot.recipient_N)) > 1 for spot in task.spots):
        kinds.append(MOVED)
    return kinds


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
    """Score both models unchanged, and the recipient with each target of the plan swapped or disturbed.

    Which text stands in for another, and which token for another, does not depend on the batches.

    Args:
        plan: by target, how it is swapped.
        scores: of an earlier sweep, to which these are added; then the unchanged models are not scored again.
    """
    order = sorted(range(len(task)), key=lambda number: -len(task.recipient_ids[number]))
    partner, heads = _partners(task.donor_ids, order), anatomy_of(recipient).num_heads
    plain = scores is None
    found: Scores = {} if scores is None else scores
    wanted = [target for target, kinds in plan.items() if OTHER in kinds]

    def swaps(spot: Spot, numbers: Sequence[int]) -> Iterator[tuple[Run, dict[str, np.ndarray]]]:
        documents, donated = ([side[n] for n in numbers] for side in (task.recipient_ids, task.donor_ids))
        batch, lengths, places = padded(documents), list(map(len, documents)), [spot.recipient_N[n] for n in numbers]
        own = captured_rows(recipient, documents, places, plan)
        given = other = captured_rows(donor, donated, [spot.donor_N[n] for n in numbers], plan)
        if wanted:
            texts = [task.donor_ids[partner[n]] for n in numbers]
            wrapped = [[at % len(ids_T) for at in spot.donor_N[n]] for n, ids_T in zip(numbers, texts, strict=True)]
            other = captured_rows(donor, texts, wrapped, wanted)
        text_K = own.text_N.numpy()
        for target, kinds in plan.items():
            own_KD, given_KD = rows_of(own, target.part, heads), rows_of(given, target.part, heads)
            for kind in kinds:
                if kind == SWAP:
                    rows_KD = given_KD
                elif kind == OTHER:
                    rows_KD = rows_of(other, target.part, heads)
                else:
                    disturbed = moved_rows if kind == MOVED else random_rows
                    rows_KD = disturbed(own_KD, given_KD, text_K, numbers, seed)
                with Patched(recipient, {target.part: rows_KD}, positions=places):
                    logits_BTV = run_logits(recipient, *batch)
                yield (spot.name, target, kind), task.scores(numbers, logits_BTV, lengths)

    def batches() -> Iterator[tuple[list[int], Run, dict[str, np.ndarray]]]:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            for name, model, side in ((RECIPIENT, recipient, task.recipient_ids), (DONOR, donor, task.donor_ids)):
                if plain:
                    documents = [side[number] for number in numbers]
                    logits_BTV = run_logits(model, *padded(documents))
                    yield numbers, ("", None, name), task.scores(numbers, logits_BTV, list(map(len, documents)))
            for spot in task.spots if plan else ():
                for run, values in swaps(spot, numbers):
                    yield numbers, run, values

    total = len(task) * (2 * plain + len(task.spots) * sum(map(len, plan.values())))
    for numbers, run, values in progress(batches(), description, "texts", total, size=lambda batch: len(batch[0])):
        for measure, values_B in values.items():
            found.setdefault(run, {}).setdefault(measure, np.full(len(task), np.nan))[numbers] = values_B
    return found


def _partners(donor_ids: Sequence[np.ndarray], order: Sequence[int]) -> dict[int, int]:
    """Return for each text the next in order, of similar length, that is different: a copy would disturb nothing."""
    found = {}
    for place, number in enumerate(order):
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        own = donor_ids[number]
        found[number] = next((other for other in others if not np.array_equal(donor_ids[other], own)), number)
    return found


@dataclass(frozen=True)
class SwapCheck:
    """Whether swapping does what it must, seen on some texts.

    Attributes:
        itself: largest change of a logit where each target is swapped with the recipient's own activations.
        whole: largest distance from the donor's scores where everything is swapped.
        targets, texts: how many were checked.
    """

    itself: float
    whole: float
    targets: int
    texts: int

    def __str__(self) -> str:
        same = "nothing" if self.itself == 0 else f"logits by at most {self.itself:.1e}"
        equal = "exactly" if self.whole == 0 else f"within {self.whole:.1e}"
        return (
            f"swapping each of {self.targets} components with itself changes {same}, and swapping everything gives the "
            f"donor {equal} ({self.texts} text{'s' if self.texts > 1 else ''})"
        )


def check_swaps(donor: Any, recipient: Any, task: Task, targets: Sequence[Target]) -> SwapCheck:
    """Check on the first texts that a swap with itself changes nothing and that swapping everything gives the donor.

    Everything: the logits of two models; of one model on two prompts the last hidden state of the last token.

    Raises:
        RuntimeError: where either fails; then no result of the probe is valid.
    """
    numbers = list(range(min(CHECKED_TEXTS, len(task))))
    documents, donated = task.recipient_ids[: len(numbers)], task.donor_ids[: len(numbers)]
    batch, places = padded(documents), task.spots[0].recipient_N[: len(numbers)]
    anatomy = anatomy_of(recipient)
    plain_BTV = run_logits(recipient, *batch)
    own = captured_rows(recipient, documents, places, targets)
    itself = 0.0
    for target in targets:
        with Patched(recipient, {target.part: rows_of(own, target.part, anatomy.num_heads)}, positions=places):
            itself = max(itself, float((run_logits(recipient, *batch) - plain_BTV).abs().max()))
    depth = anatomy.num_blocks
    if donor is recipient:
        with Capture(donor, {"hidden": [depth]}, 1) as capture:
            of_donor_BTV = run_logits(donor, *padded(donated))
        patch = Patched(recipient, {ModelPart("hidden", depth): capture.activations.of("hidden", depth)}, positions=1)
    else:
        of_donor_BTV = run_logits(donor, *padded(donated))
        patch = Patched(recipient, [ModelPart("logits", depth)], donor=donor)
    with patch:
        whole_BTV = run_logits(recipient, *batch)
    expected = task.scores(numbers, of_donor_BTV, list(map(len, donated)))
    got = task.scores(numbers, whole_BTV, list(map(len, documents)))
    whole = max(float(np.abs(expected[measure] - got[measure]).max()) for measure in expected)
    check = SwapCheck(itself, whole, len(targets), len(numbers))
    # On a CPU hooks replace numbers by equal numbers, so not a bit may differ; other kernels may vary by rounding.
    allowed = 0.0 if plain_BTV.device.type == "cpu" else ROUNDING
    if not (itself <= allowed and whole <= ROUNDING * max(1.0, max(map(len, documents)))):
        raise RuntimeError(f"{check}: more than rounding explains, so no result of swapping is valid")
    return check
