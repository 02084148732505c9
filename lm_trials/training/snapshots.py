"""Snapshots: attention, embeddings, gradients and activations on some validation stories, saved with each checkpoint.

They are computed from the checkpoint's files and not from the model in training: by the weights as saved, in the main
process, with a random state of their own, so that training is the same bit for bit.  `lm_trials.snapshots` reads them.

Shape suffixes: L = layers, H = heads, T = tokens of a story, D = width, V = vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import UsageError
from lm_trials.evaluation.losses import IGNORED
from lm_trials.evaluation.summary import store_documents
from lm_trials.files import write_json
from lm_trials.models.reference import ModelReference, resolve_model
from lm_trials.models.shapes import text_config
from lm_trials.pairs.examples import ExampleStore
from lm_trials.snapshots import FOLDER, TEXTS, saved_updates
from lm_trials.training.flags import SavedArguments
from lm_trials.training.plan import Plan
from lm_trials.training.run_arguments import RunArguments


class Text(NamedTuple):
    """One story: its (T,) ids, and its (T,) labels, -100 for tokens that count in no loss."""

    record_id: str
    ids_T: np.ndarray
    labels_T: np.ndarray


def story_texts(store: Any, block_size: int) -> Iterator[Text]:
    """Yield the stories of a token store, cut to a block."""
    for document in store_documents(store):
        ids_T = document.input_ids[:block_size].astype(np.int64)
        yield Text(document.record_id, ids_T, np.concatenate([[IGNORED], ids_T[1:]]))


def example_texts(store: ExampleStore, completion_only: bool) -> Iterator[Text]:
    """Yield the examples of a fine-tuning, with the labels of its loss."""
    for number, row in enumerate(store.labelled(completion_only)):
        yield Text(store.record_id(number), np.array(row["input_ids"]), np.array(row["labels"]))


@dataclass(frozen=True)
class Snapshots:
    """What is computed at each checkpoint.

    Attributes:
        names: of `lm_trials.snapshots.SNAPSHOTS`.
        texts: the stories, the same at each checkpoint.
        load: loads a model from a checkpoint, with the settings of the training.
    """

    names: Sequence[str]
    texts: Sequence[Text]
    tokenizer: PreTrainedTokenizerBase
    load: Callable[..., PreTrainedModel]

    def write(self, checkpoint: Path) -> None:
        """Compute the snapshot of a checkpoint, and write it into its folder."""
        folder = checkpoint / FOLDER
        folder.mkdir()
        with torch.random.fork_rng():  # PEFT draws the adapter's weights before it loads them
            # The kernels of `sdpa` return no attention weights.
            model = self.load(resolve_model(str(checkpoint)), attn_implementation="eager")
        tensors, losses = taken(model, self.texts, self.names)
        for name, values in tensors.items():
            save_file(values, folder / f"{name}.safetensors")
        rows = [
            {
                "record_id": text.record_id,
                "input_ids": text.ids_T.tolist(),
                "tokens": self.tokenizer.convert_ids_to_tokens(text.ids_T.tolist()),
                "loss": loss,
                "num_scored": _num_scored(text),
            }
            for text, loss in zip(self.texts, losses, strict=True)
        ]
        write_json(folder / TEXTS, {"texts": rows})

    def num_bytes(self, model: Any) -> dict[str, int]:
        """Return the size of each file; a UsageError for attention of a model without heads."""
        config: Any = text_config(model)
        lengths = [len(text.ids_T) for text in self.texts]
        layers, heads = config.num_hidden_layers, getattr(config, "num_attention_heads", 0)
        if "attention" in self.names and not heads:
            raise UsageError(f"--snapshot attention: a {config.model_type} has no attention heads; remove attention")
        numbers = {
            "attention": layers * heads * sum(length**2 for length in lengths),
            "embeddings": model.get_input_embeddings().get_parameter("weight").numel(),
            "gradients": model.num_parameters(only_trainable=True),
            "activations": (layers + 1) * config.hidden_size * sum(lengths),
        }
        return {name: 4 * numbers[name] for name in self.names}


def _num_scored(text: Text) -> int:
    return int((text.labels_T != IGNORED).sum())


def taken(
    model: PreTrainedModel, texts: Sequence[Text], names: Sequence[str]
) -> tuple[dict[str, dict[str, torch.Tensor]], list[float]]:
    """Return the tensors of a snapshot by file and name, in float32 on the CPU, and each story's nats per token.

    Attention probabilities and hidden states are transformers' own `output_attentions` and `output_hidden_states`:
    layer 0 are the embeddings, the last layer follows the final norm.  Gradients are those of the trained parameters:
    with an adapter, of the adapter's.

    Args:
        model: in evaluation mode, with eager attention.
    """
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    losses = []
    parameters = dict(model.named_parameters())
    trained = {name: weight for name, weight in parameters.items() if "lora_" in name} or parameters
    for name, weight in parameters.items():
        weight.requires_grad_(name in trained and "gradients" in names)
    total = sum(map(_num_scored, texts))
    for number, text in enumerate(texts):
        ids_BT, labels_T = (torch.from_numpy(values).to(model.device) for values in (text.ids_T[None], text.labels_T))
        asked = {"output_attentions": "attention" in names, "output_hidden_states": "activations" in names}
        output = model(input_ids=ids_BT, use_cache=False, **asked)
        nats = functional.cross_entropy(output.logits[0, :-1].float(), labels_T[1:], reduction="sum")
        losses.append(nats.item() / max(_num_scored(text), 1))
        if "gradients" in names:
            (nats / total).backward()
        if "attention" in names:
            found["attention"][str(number)] = _saved(torch.cat(output.attentions))
        if "activations" in names:
            found["activations"][str(number)] = _saved(torch.cat(output.hidden_states))
    if "embeddings" in names:
        found["embeddings"]["weight"] = _saved(model.get_input_embeddings().get_parameter("weight"))
    if "gradients" in names:
        # An expert that no token was sent to has none.
        found["gradients"] = {name: _saved(weight.grad) for name, weight in trained.items() if weight.grad is not None}
    return found, losses


def _saved(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to("cpu", torch.float32).contiguous()


def check_saved_arguments(args: RunArguments, saved: SavedArguments) -> None:
    """Refuse a ladder or snapshots of a run that saves no checkpoint, or only those that are the best so far."""
    for strategy in ("no", "best"):
        if saved.checkpoint_ladder and args.save_strategy == strategy:
            raise UsageError(
                f"--checkpoint_ladder True adds to the checkpoints of --save_steps, and --save_strategy {strategy} "
                "saves none at fixed updates; give --save_strategy steps"
            )
    if saved.snapshot and args.save_strategy == "no":
        raise UsageError(
            f"--snapshot {','.join(saved.snapshot)} is saved with checkpoints, and --save_strategy no saves none; give "
            "--save_strategy steps"
        )


def choose_snapshots(
    saved: SavedArguments,
    texts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[ModelReference], PreTrainedModel],
) -> Snapshots | None:
    """Return the snapshots that are asked for, of the first `--snapshot_samples` texts; a UsageError without any."""
    if not saved.snapshot:
        return None
    chosen = list(islice(texts, saved.snapshot_samples))
    if not chosen:
        raise UsageError("--snapshot: the data set has no validation split to read; give one, or remove the flag")
    return Snapshots(saved.snapshot, chosen, tokenizer, load)


def saved_facts(
    args: RunArguments, saved: SavedArguments, plan: Plan, snapshots: Snapshots | None, model: Any
) -> dict[str, str]:
    """Return the lines about a ladder and snapshots that are shown before training.

    Raises:
        UsageError: for snapshots that do not fit on the disk.
    """
    facts = {}
    updates = saved_updates(plan.num_steps, args.save_steps, saved.checkpoint_ladder)
    if saved.checkpoint_ladder:
        facts["checkpoints"] = f"{len(updates):,}: updates 0, 1, 2, 4, 8, ... and every {args.save_steps:g}"
    if snapshots:
        sizes = snapshots.num_bytes(model)
        count = min(len(updates), args.save_total_limit or len(updates))
        each, total = sum(sizes.values()), count * sum(sizes.values())
        parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items())
        facts["snapshots"] = f"{count:,} of {each / 1e6:,.1f} MB ({parts}), {total / 1e6:,.0f} MB in all"
        place = next(parent for parent in Path(args.output_dir).absolute().parents if parent.is_dir())
        if (free := shutil.disk_usage(place).free) < total:
            raise UsageError(
                f"--snapshot {','.join(snapshots.names)}: {facts['snapshots']}, and {free / 1e6:,.0f} MB are free; ask "
                "for less, lower --snapshot_samples, or raise --save_steps"
            )
    return facts
