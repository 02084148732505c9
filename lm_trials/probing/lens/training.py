"""Training of tuned lenses: the stories, the training loop and the file of a lens.

Each layer's map is trained by itself on KL(final || lens), averaged over the positions of a batch of stories, with the
settings of Belrose et al. (2023): SGD with Nesterov momentum 0.9, a learning rate that decays linearly to 0, gradients
clipped to norm 1.  One forward pass of the frozen model serves all layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lm_trials.console import UsageError, progress
from lm_trials.data.datasets import dataset_of
from lm_trials.files import write_file
from lm_trials.probing.activation_store import captured
from lm_trials.probing.anatomy import Anatomy, anatomy_of
from lm_trials.probing.flags import TextArguments
from lm_trials.probing.lens.flags import LensArguments
from lm_trials.probing.lens.lenses import Decoder, Places, Translators, weights_sha256
from lm_trials.probing.subjects import Subject, read_stories, texts_digest
from lm_trials.stories.records import Record

# Held-out KL at layer 2 of a 0.9M model after 250 updates: 1.281; with Adam at 1e-2 1.288; of the logit lens 2.586.
MOMENTUM = 0.9
LARGEST_GRADIENT = 1.0
# One in five is a convention; prepared data sets have their own splits.
HELD_OUT = 5
"""Of a path without splits, one story in this many, by hash, is held out of training and evaluated on."""


@dataclass(frozen=True)
class LensStories:
    """The stories that lenses are trained on and those that they are evaluated on; none is in both."""

    training: list[Record]
    evaluation: list[Record]


def read_lens_stories(texts: TextArguments, args: LensArguments) -> LensStories:
    """Read both sets of stories; a story of both is evaluated on only.  With `--lens` nothing is trained.

    Raises:
        UsageError: for a data set that does not exist, or without stories left to train on.
    """
    own = args.lens_dataset_name is None and args.lens_dataset_split is None
    if own and texts.dataset_split is None and dataset_of(texts).default_split is None:
        wanted = texts.max_eval_samples
        limit = None if wanted is None else max(2 * HELD_OUT * wanted, 2 * args.max_train_samples)
        records = read_stories(replace(texts, max_eval_samples=limit))
        evaluation = [record for record in records if int(record["record_id"][:8], 16) % HELD_OUT == 0][:wanted]
        if not evaluation:
            raise UsageError(
                f"--dataset_name {texts.dataset_name} has {len(records)} stories, too few to hold out one in {HELD_OUT}"
                "; give more stories, or a second data set to train on with --lens_dataset_name"
            )
        training = records
    elif args.lens:
        evaluation, training = read_stories(texts), []
    else:
        evaluation = read_stories(texts)
        name = args.lens_dataset_name or texts.dataset_name
        whole = args.lens_dataset_name is not None and dataset_of(texts, name).default_split is None
        split = args.lens_dataset_split or (None if whole else "train")
        config = None if args.lens_dataset_name else texts.dataset_config_name
        own_texts = replace(texts, dataset_name=name, dataset_config_name=config, dataset_split=split)
        training = read_stories(replace(own_texts, max_eval_samples=args.max_train_samples))
    held_out = {record["record_id"] for record in evaluation}
    kept = [record for record in training if record["record_id"] not in held_out][: args.max_train_samples]
    if not kept and not args.lens:
        raise UsageError(
            f"--dataset_name: all {len(training)} stories to train on are evaluated on too; give other stories with "
            "--lens_dataset_name or --lens_dataset_split"
        )
    texts.texts_sha256 = texts_digest([*evaluation, *kept])
    return LensStories(kept, evaluation)


def story_documents(subject: Subject, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Return the ids of each story of at least two tokens, by its record id.

    Raises:
        UsageError: if there is none.
    """
    ids = subject.story_ids([record["story"] for record in records])
    found = {record["record_id"]: ids_T for record, ids_T in zip(records, ids, strict=True) if len(ids_T) > 1}
    if not found:
        raise UsageError("--dataset_name: no story has two tokens, so no token is predicted; give longer stories")
    return found


@dataclass(frozen=True)
class LensSettings:
    """How a tuned lens is trained; a batch is of stories."""

    steps: int = 250
    batch_size: int = 8
    learning_rate: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class TunedLens:
    """A tuned lens, its control and its origin.

    Attributes:
        translators: its maps.
        log_frequencies_V: the model's mean prediction on the training stories, the control.
        stories: hashes of the training stories (`story_numbers`), on none of which it may be evaluated.
        about: the model's weights, blocks and width, and the settings.
    """

    translators: Translators
    log_frequencies_V: torch.Tensor
    stories: np.ndarray
    about: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write it as safetensors, atomically; the same lens gives the same bytes."""
        maps = self.translators
        tensors = {f"weight.{layer}": values.cpu().contiguous() for layer, values in maps.weights.items()}
        tensors |= {f"bias.{layer}": values.cpu().contiguous() for layer, values in maps.biases.items()}
        tensors |= {"log_frequencies": self.log_frequencies_V.cpu(), "stories": torch.from_numpy(self.stories)}
        # One metadata key: safetensors writes several in any order.
        write_file(path, save(tensors, {"lens": json.dumps(dict(self.about), sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> TunedLens:
        """Read a file that `save` wrote.

        Raises:
            UsageError: for another file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["lens"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            maps = Translators(
                {layer: tensors[f"weight.{layer}"] for layer in about["layers"]},
                {layer: tensors[f"bias.{layer}"] for layer in about["layers"]},
            )
            return cls(maps, tensors["log_frequencies"], tensors["stories"].numpy(), about)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UsageError(
                f"--lens {path} is not a tuned lens ({error}); give the lens.safetensors that this probe wrote"
            ) from None

    def check(self, path: str, anatomy: Anatomy, weights: str, layers: Sequence[int]) -> None:
        """Check that the lens belongs to a model with these weights and has these layers.

        Raises:
            UsageError: where it does not.
        """
        blocks, width = self.about["num_blocks"], self.about["width"]
        if (blocks, width) != (anatomy.num_blocks, anatomy.width):
            raise UsageError(
                f"--lens {path} belongs to a model of {blocks} blocks of width {width} and {anatomy.name} has "
                f"{anatomy.num_blocks} of {anatomy.width}; give the lens of this model, or remove --lens"
            )
        if self.about["weights_sha256"] != weights:
            raise UsageError(
                f"--lens {path} was trained for {self.about['model']}, whose weights are not those of {anatomy.name}; "
                "give the lens of this model, or remove --lens to train one"
            )
        if lacking := [layer for layer in layers if layer < anatomy.num_blocks and layer not in self.about["layers"]]:
            there = " ".join(map(str, self.about["layers"]))
            raise UsageError(f"--lens {path} has no layer {lacking[0]}; give --layers {there}, or remove --lens")

    def check_held_out(self, path: str, record_ids: Sequence[str]) -> None:
        """Check that none of these stories is one that the lens was trained on.

        Raises:
            UsageError: with the number of those that are.
        """
        if known := int(np.isin(story_numbers(record_ids), self.stories).sum()):
            raise UsageError(
                f"--lens {path} was trained on {known} of the {len(record_ids)} stories to evaluate on; give other "
                "stories with --dataset_name or --dataset_split"
            )


def story_numbers(record_ids: Sequence[str]) -> np.ndarray:
    """Return the 64-bit hashes of record ids, sorted.

    >>> len(story_numbers(["a", "b"])), story_numbers(["a"]) == story_numbers(["a"])
    (2, array([ True]))
    """
    digests = (hashlib.sha256(name.encode()).digest()[:8] for name in record_ids)
    return np.sort(np.array([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=np.int64))


def train_translators(
    batches: Iterable[Places], decode: Any, layers: Sequence[int], width: int, settings: LensSettings
) -> Translators:
    """Train the maps of some layers, one batch of positions for each update.

    A layer's map does not depend on which other layers are trained with it.

    Args:
        decode: a `Decoder`; its weights are not changed.

    Raises:
        UsageError: where a map has become infinite.
    """
    maps = Translators.identity(layers, width, decode.device)
    parameters = [values.requires_grad_(True) for layer in layers for values in maps.of(layer)]
    # One optimizer for all layers, but gradients are clipped per layer: a large one does not scale down the others.
    half = decode.dtype == torch.float16
    optimizer = torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(1 - step / settings.steps, 0))
    for places in batches:
        optimizer.zero_grad(set_to_none=True)
        count = len(places.targets_N)
        for part in places.chunks(decode.places, decode.device):
            with torch.no_grad():
                chances_NV = decode.of_normed(part.normed_ND).exp()
            for layer in layers:
                mapped_ND = maps(layer, part.hidden[layer])
                logits_NV = decode.logits(mapped_ND)
                # KL(final || lens) without the final prediction's entropy, which no map can change.
                nats_N = logits_NV.logsumexp(-1) - (chances_NV * logits_NV).sum(-1)
                if half:  # there the gradient of a mean rounds to 0 at most tokens: 3 % off at 6,000 x 4,096 logits
                    mapped_ND.register_hook(lambda gradient_ND, share=1 / count: gradient_ND * share)
                (nats_N.sum() / (1 if half else count)).backward()
        for layer in layers:
            torch.nn.utils.clip_grad_norm_(maps.of(layer), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    for layer in layers:
        for values in maps.of(layer):
            values.requires_grad_(False)
            if not values.isfinite().all():
                raise UsageError(
                    f"--learning_rate {settings.learning_rate:g} made the lens of layer {layer} infinite; lower it"
                )
    return maps


def drawn_batches(count: int, settings: LensSettings) -> Iterator[list[int]]:
    """Yield the numbers of the stories of each update: all `count` stories, in a new order for each pass.

    >>> first = list(drawn_batches(3, LensSettings(steps=3, batch_size=2)))
    >>> first == list(drawn_batches(3, LensSettings(steps=3, batch_size=2))), sorted(sum(first, [])[:3])
    (True, [0, 1, 2])
    """
    generator = np.random.Generator(np.random.Philox(settings.seed))
    waiting: list[int] = []
    for _ in range(settings.steps):
        while len(waiting) < settings.batch_size:
            waiting += generator.permutation(count).tolist()
        yield waiting[: settings.batch_size]
        waiting = waiting[settings.batch_size :]


def train_lens(
    model: Any,
    documents: Mapping[str, np.ndarray],
    log_frequencies_V: torch.Tensor,
    layers: Sequence[int],
    settings: LensSettings,
    name: str = "",
) -> TunedLens:
    """Train the tuned lens of a model on stories; the model is frozen.

    Args:
        documents: the (T,) ids of each story, by its record id.
        layers: hidden-state layers; the last has no map.

    Raises:
        RuntimeError: if the model's weights have changed.
    """
    anatomy, before = anatomy_of(model, name), weights_sha256(model)
    layers = [layer for layer in layers if layer < anatomy.num_blocks]
    model.requires_grad_(False)
    stories = list(documents.values())

    def batches() -> Iterator[Places]:
        sites = {"hidden": layers, "normed": None}
        steps = drawn_batches(len(stories), settings)
        for numbers in progress(steps, f"tuning the lens of {anatomy.name}", "updates", settings.steps):
            chosen = [stories[number] for number in numbers]
            [found] = captured(model, chosen, sites, batch_size=len(chosen), description=None)
            places = Places.of(found, chosen, layers)
            # Cloned, because a tensor made in inference mode cannot take part in a backward pass.
            hidden = {layer: values.clone() for layer, values in places.hidden.items()}
            yield replace(places, hidden=hidden, normed_ND=places.normed_ND.clone())

    maps = train_translators(batches(), Decoder(anatomy), layers, anatomy.width, settings)
    if weights_sha256(model) != before:
        raise RuntimeError(f"{anatomy.name} has changed while its lens was trained, so the lens is not this model's")
    about = {
        **asdict(settings),
        "model": anatomy.name,
        "weights_sha256": before,
        "num_blocks": anatomy.num_blocks,
        "width": anatomy.width,
        "layers": layers,
        "stories": len(stories),
    }
    return TunedLens(maps.to("cpu"), log_frequencies_V, story_numbers(list(documents)), about)
