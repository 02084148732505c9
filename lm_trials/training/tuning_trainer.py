"""The Trainer of fine-tuning: trl's `SFTTrainer` with exact resumption and evaluation, without telemetry.

`AdapterTrainer` is what it shares with the Trainers of `alignment_trainer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from lm_trials.console import UsageError
from lm_trials.estimates import interval_text
from lm_trials.evaluation.example_losses import KINDS, example_sums, loss_metrics
from lm_trials.models.adapters import (
    ADAPTER_WEIGHTS,
    as_trained,
    check_adapter_state,
    load_adapter_weights,
    restore_trained,
    without_noise,
)
from lm_trials.pairs.examples import ExampleStore
from lm_trials.stories.shards import first_line
from lm_trials.training.resumption import ExactResume

Trained = TypeVar("Trained", bound=ExactResume)


class AdapterTrainer(ExactResume):
    """A mixin for trl's Trainers: exact resumption with an adapter, without telemetry.

    Attributes:
        eval_store: validation examples; None or empty for no evaluation.
        max_eval_samples: examples to evaluate, in the store's order; None for all.
    """

    processing_class: PreTrainedTokenizerBase
    eval_store: Any = None
    max_eval_samples: int | None = None
    _metrics: dict[str, Any]

    def __init__(self, **kwargs: Any) -> None:
        adapter = as_trained(kwargs["model"]) if isinstance(kwargs["model"], PeftModel) else {}
        with without_noise():
            super().__init__(**kwargs)
        restore_trained(self.model, adapter)

    def _send_telemetry(self) -> None:
        """Send nothing: trl reports each Trainer to the Hub."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, without warnings of trl in each forward pass of a reference."""
        with without_noise():
            return super().train(*args, **kwargs)

    def log_evaluation(self, metrics: dict[str, float], first: str) -> dict[str, float]:
        """Log an evaluation, once, and call its callbacks; `first` is a metric that every evaluation has."""
        if not self.is_logged(first):  # a resumed run's log may have it from its checkpoint
            was_training = self.model.training
            self.model.eval()  # by the mode, trl chooses the metrics that it adds to a log line
            self.log(metrics)
            self.model.train(was_training)
        return self.evaluated(metrics)

    def final_metrics(self) -> dict[str, float]:
        """Return the current model's metrics, as `ExactResume.final_metrics`; {} without examples."""
        return super().final_metrics() if self.eval_store else {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens per second, without padding, to training logs; trl adds its own metrics."""
        if "loss" in logs:
            logs["tokens_per_second"] = self.clock.per_second()
        if "train_loss" in logs:  # trl's training metrics, also for a resumed run without updates left
            self.model.train()
        super().log(logs, start_time)

    def progress(self) -> dict[str, Any]:
        """Return this process's sums, with trl's own sums since the last log line."""
        sums = {name: list(values) for name, values in self._metrics["train"].items()}
        return {**super().progress(), "train_metrics": sums, "train_tokens": self._total_train_tokens}

    def restore_progress(self, parts: list[dict[str, Any]]) -> None:
        """Restore what `progress` returned; trl's sums are over all processes."""
        super().restore_progress(parts)
        self._total_train_tokens = parts[0]["train_tokens"]
        self.clock.restart()
        self._metrics["train"].clear()
        self._metrics["train"].update({name: list(values) for name, values in parts[0]["train_metrics"].items()})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint, an adapter exactly."""
        target = self.accelerator.unwrap_model(self.model if model is None else model)
        if isinstance(target, PeftModel):
            load_adapter_weights(target, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best model, an adapter exactly."""
        target = self.accelerator.unwrap_model(self.model)
        if isinstance(target, PeftModel):
            load_adapter_weights(target, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save, and compare a saved adapter with the model's."""
        with without_noise():
            super()._save(output_dir, state_dict)
        model, folder = self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir)
        if self.args.should_save and isinstance(model, PeftModel) and (folder / ADAPTER_WEIGHTS).is_file():
            check_adapter_state(model, folder, weights=state_dict)


class FineTuner(AdapterTrainer, SFTTrainer):
    """`trl.SFTTrainer` on tokenized and labelled examples.

    Args:
        eval_store: validation examples; None or empty for no evaluation.
        completion_only: leave prompts out of `eval_loss`, as out of the training loss.
        max_eval_samples: examples to evaluate, in the store's order; None for all.
        kwargs: `SFTTrainer`'s.
    """

    eval_store: ExampleStore | None

    def __init__(
        self, *, eval_store: ExampleStore | None, completion_only: bool, max_eval_samples: int | None, **kwargs: Any
    ) -> None:
        arguments = kwargs["args"]
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
        arguments.remove_unused_columns = False  # rows are computed on access, from columns that Trainer would remove
        arguments.chat_template_path = None  # `tuning_examples.open_examples` has applied it
        arguments.max_length = None if arguments.padding_free and not arguments.packing else arguments.max_length
        if eval_store:
            kwargs["eval_dataset"] = eval_store.labelled(completion_only)  # Trainer requires one
        super().__init__(**kwargs)
        self.eval_store = eval_store
        self.completion_only = completion_only
        self.max_eval_samples = max_eval_samples
        self.sums_NK: Any = None  # of the last evaluation
        self.watch(lambda: self._total_train_tokens, lambda metrics: [both_losses(metrics)])

    def evaluation_sums(self, model: Any = None) -> Any:
        """Return `example_sums` of the validation examples, by this model or another; every process calls it."""
        assert self.eval_store is not None
        model = self.accelerator.unwrap_model(self.model) if model is None else model
        sizes = self.max_eval_samples, self.args.per_device_eval_batch_size
        return example_sums(model, self.eval_store, *sizes, self.processes())

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on the validation examples: loss of completions and of all tokens, with intervals over examples."""
        if eval_dataset is not None:
            raise ValueError("a fine-tuning evaluates its own validation examples; use lm-trials evaluate for others")
        started = time.perf_counter()
        self.sums_NK = self.evaluation_sums()
        metrics = loss_metrics(self.sums_NK, KINDS[0] if self.completion_only else KINDS[1], metric_key_prefix)
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 4)
        return self.log_evaluation(metrics, f"{metric_key_prefix}_loss")


def make_trainer(kind: Callable[..., Trained], **kwargs: Any) -> Trained:
    """Return `kind(**kwargs)`; flags that transformers or trl refuse raise a UsageError and leave no folder."""
    folder = Path(kwargs["args"].output_dir)
    was_there = folder.exists()
    try:
        return kind(**kwargs)
    except (ValueError, ImportError) as error:  # trl's errors about flags
        if not was_there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"the Trainer refuses these flags together ({first_line(error)}); remove one of them"
        ) from error


def both_losses(metrics: dict[str, float], prefix: str = "eval") -> str:
    """Return both losses in one line.

    >>> import numpy as np
    >>> both_losses(loss_metrics(np.array([[2.0, 1, 1, 6.0, 3, 1], [2.0, 1, 0, 6.0, 3, 2]]), "completion"))
    'completion loss 2.0000 [no interval], unmasked 2.0000 [no interval] nats per token, n = 2 examples'
    >>> both_losses(loss_metrics(np.array([[2.0, 1, 1, 6.0, 3, 1]]), "completion"))
    'completion loss 2.0000 [no interval], unmasked 2.0000 [no interval] nats per token, n = 1 examples'
    """
    shown = []
    for name in (f"{prefix}_{kind}_loss" for kind in KINDS):
        limits = interval_text(metrics[f"{name}_lower"], metrics[f"{name}_upper"], 4)
        shown.append(f"{metrics[name]:.4f} {limits}")
    samples = int(metrics[f"{prefix}_completion_samples"])
    return f"completion loss {shown[0]}, unmasked {shown[1]} nats per token, n = {samples:,} examples"
