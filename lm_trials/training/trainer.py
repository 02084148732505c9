"""The Trainer of pretraining: `transformers.Trainer` with exact evaluation and logs by tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase, default_data_collator
from transformers.integrations import TensorBoardCallback

from lm_trials.console import UsageError
from lm_trials.estimates import interval_text
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.losses import Document, story_losses
from lm_trials.evaluation.sentences import SentenceTokens
from lm_trials.evaluation.summary import LossSummary, store_documents
from lm_trials.tokens.blocks import RunBlocks
from lm_trials.tokens.stores import Separator, opening_of
from lm_trials.training.callbacks import (
    GENERATIONS,
    GenerationPlan,
    as_markdown,
    feature_metrics,
    report_to_wandb,
    write_tables,
)
from lm_trials.training.resumption import ExactResume
from lm_trials.training.stores import Store
from lm_trials.training.throughput import flops_per_token, peak_flops


class StoryTrainer(ExactResume):
    """`transformers.Trainer` on blocks of stories.

    `evaluate` sums over tokens in every process.  Trainer's own loss is a mean of batch means, which depends on the
    batch size; and before `train` its `evaluate` leaves the model without DDP, so that the processes train apart.

    Args:
        eval_block_size: maximum window of an evaluation, in tokens.
        max_eval_samples: validation stories to evaluate, in the store's order; None for all.
        num_sampled_stories: stories generated after each evaluation, of at most `sample_tokens`, for TensorBoard.
        named_eval_datasets: further stores to evaluate, as `eval_<name>_loss` and so on.
        part_names: names of a mixture's parts, whose shares of the tokens are logged.
        separator: token before each story, also before a generated one.
        sentences_with: features whose sentences are also evaluated, as `eval_sentences_<feature>_loss` and so on.
        kwargs: `Trainer`'s; `eval_dataset` is a `TokenStore` or `SetStore`.
    """

    processing_class: PreTrainedTokenizerBase
    eval_dataset: Any

    def __init__(
        self,
        *args: Any,
        eval_block_size: int,
        max_eval_samples: int | None = None,
        num_sampled_stories: int = 0,
        sample_tokens: int = 200,
        named_eval_datasets: dict[str, Store] | None = None,
        generations: GenerationPlan | None = None,
        part_names: Sequence[str] = (),
        separator: Separator = "bos",
        sentences_with: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        kwargs["data_collator"] = default_data_collator
        super().__init__(*args, **kwargs)
        self.eval_block_size = eval_block_size
        self.max_eval_samples = max_eval_samples
        self.num_sampled_stories = num_sampled_stories
        self.sample_tokens = min(sample_tokens, eval_block_size - 1)
        self.named_eval_datasets = named_eval_datasets or {}
        self.generations = generations
        self.part_names = tuple(part_names)
        self.separator = separator
        self.sentences = SentenceTokens(self.processing_class, sentences_with)
        self._parts: WeakKeyDictionary[Any, list] = WeakKeyDictionary()  # of each store's documents
        # Of this process, on the device: a sum that is read in each update makes the host wait for the device.
        self.part_tokens_P = torch.zeros(len(part_names), dtype=torch.long, device=self.args.device)
        self.watch(lambda: self.state.global_step, loss_lines)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on stories; returns `eval_loss`, `eval_perplexity`, ... with their intervals.

        Without `eval_dataset`, evaluate the Trainer's own and all named ones, and generate stories.
        """
        if eval_dataset is not None:
            return self._evaluate_one(eval_dataset, metric_key_prefix)
        if self.eval_dataset is None:
            raise UsageError("--dataset_name: no validation split to evaluate; give a data set that has one")
        metrics = self._evaluate_one(self.eval_dataset, metric_key_prefix)
        for name, store in self.named_eval_datasets.items():
            metrics |= self._evaluate_one(store, f"{metric_key_prefix}_{name}")
        self.log_samples()
        return self.evaluated(metrics | self.log_generations(metric_key_prefix))

    def _documents(self, store: Any) -> Iterator[Document]:
        """Yield the documents to evaluate; their sentences are found in the first evaluation only."""
        parts = self._parts.setdefault(store, [])
        for number, document in enumerate(store_documents(store, self.max_eval_samples)):
            if number == len(parts):
                parts.append(self.sentences.parts(document.input_ids))
            yield replace(document, parts=parts[number])

    def _evaluate_one(self, store: Any, prefix: str) -> dict[str, float]:
        started = time.perf_counter()
        summary = LossSummary()
        # Without the DDP wrapper, because an evaluation does not synchronize gradients.
        model, documents = self.accelerator.unwrap_model(self.model), self._documents(store)
        batch, processes = self.args.per_device_eval_batch_size, self.processes()
        # Trainer's `eval_loss` is a mean of batch means, which changes with the batch size; sums per story cost no
        # more time.
        for story in story_losses(model, documents, self.eval_block_size, batch_size=batch, processes=processes):
            summary.add(story)
        metrics = summary.metrics(prefix)
        seconds = time.perf_counter() - started
        metrics[f"{prefix}_runtime"] = round(seconds, 4)
        metrics[f"{prefix}_tokens_per_second"] = metrics[f"{prefix}_tokens"] / seconds
        if not self.is_logged(f"{prefix}_loss"):  # a resumed run's log may have it from its checkpoint
            self.log(metrics)
        return metrics

    def generates(self) -> bool:
        """Return whether this process generates: the main one, or each, with the same prompts, for a sharded model."""
        whole = self.accelerator.distributed_type in ("NO", "MULTI_CPU", "MULTI_GPU")
        return not whole or self.is_world_process_zero()

    def log_generations(self, prefix: str) -> dict[str, float]:
        """Generate for prompts at each `generations.every`-th evaluation; returns the feature shares."""
        plan = self.generations
        evaluations = {row["step"] for row in self.state.log_history if f"{prefix}_loss" in row}  # survives a resume
        if plan is None or not plan.every or (len(evaluations) - 1) % plan.every or not self.generates():
            return {}
        step = self.state.global_step
        model = self.accelerator.unwrap_model(self.model)
        folder = Path(self.args.output_dir) / GENERATIONS if self.is_world_process_zero() else None
        written = write_tables(model, self.processing_class, plan, folder, step)
        metrics = feature_metrics(written, prefix)
        self.log(metrics)
        for name, generations in written.items():
            self.write_text(f"eval/{GENERATIONS}_{name}", as_markdown(generations))
        if "wandb" in self.args.report_to and self.is_world_process_zero():
            report_to_wandb(written, step)
        return metrics

    def write_text(self, tag: str, text: str) -> None:
        """Write a text to TensorBoard; `log` would also keep it in every checkpoint's state."""
        for callback in self.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if isinstance(callback, TensorBoardCallback) and writer is not None:
                writer.add_text(tag, text, self.state.global_step)

    def log_samples(self) -> None:
        """Generate and log stories, with the same random draws at every step."""
        if not self.num_sampled_stories or not self.generates():
            return
        model, tokenizer = self.accelerator.unwrap_model(self.model), self.processing_class
        openings = [opening_of(tokenizer, self.separator)] * self.num_sampled_stories
        # 0.8 is a convention for sampled stories and was not measured; `lm-trials generate` has its own default.
        stories = write_stories(model, tokenizer, openings, max_new_tokens=self.sample_tokens, temperature=0.8)
        texts = enumerate(tokenizer.batch_decode(stories, skip_special_tokens=True))
        logs: dict[str, Any] = {f"eval_story_{number}": text for number, text in texts}
        self.log(logs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen and tokens per second to training logs, and MFU where the device's peak is known."""
        if isinstance(self.train_dataset, RunBlocks) and "loss" in logs:
            block_size = self.train_dataset.block_size
            tokens_per_step = self.get_total_train_batch_size(self.args) * block_size
            per_second = self.clock.per_second() * tokens_per_step
            logs["tokens_seen"] = self.state.global_step * tokens_per_step
            logs["tokens_per_second"] = per_second
            logs |= {f"share_{name}": share for name, share in self.part_shares().items()}
            # MFU is logged only where the device's peak is known (GPUs in `throughput`); a CPU has no such single
            # number.
            peak = peak_flops(self.args.device) * self.args.world_size
            if peak:
                logs["mfu"] = per_second * flops_per_token(self.model, block_size) / peak
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the column `part_tokens`, which Trainer would drop because the model has no such argument."""
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        # The realized shares are logged because a mixture by tokens keeps its shares only up to a document's length.
        if "part_tokens" not in columns:
            columns.append("part_tokens")

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the batches of one update, with `part_tokens` added up and removed."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            if "part_tokens" in batch:
                self.part_tokens_P += batch.pop("part_tokens").sum(dim=0)
        return batches, num_items

    def part_shares(self) -> dict[str, float]:
        """Return each mixture part's share of the tokens so far, over all processes."""
        if not self.part_names:
            return {}
        tokens_P = self.accelerator.reduce(self.part_tokens_P).cpu().numpy()
        return dict(zip(self.part_names, (tokens_P / max(tokens_P.sum(), 1)).tolist(), strict=True))

    def progress(self) -> dict[str, Any]:
        """Return this process's sums, with the tokens of each part."""
        return {**super().progress(), "part_tokens": self.part_tokens_P.tolist()}

    def restore_progress(self, parts: list[dict[str, Any]]) -> None:
        """Restore what `progress` returned."""
        super().restore_progress(parts)
        counts = [part["part_tokens"] for part in parts]
        tokens_P = torch.tensor(counts, dtype=torch.long, device=self.args.device).sum(dim=0)
        # After a change of the process count, the first process has all.
        self.part_tokens_P = tokens_P * (len(parts) == 1 or self.args.process_index == 0)


def loss_lines(metrics: dict[str, float]) -> list[str]:
    """Return one line for each evaluated data set: loss with its interval, accuracy, n; at 80 columns."""
    prefixes = [key.removesuffix("_loss") for key in metrics if key.endswith("_loss")]
    return [
        f"{prefix} loss {metrics[f'{prefix}_loss']:.4f} "
        f"{interval_text(metrics[f'{prefix}_loss_lower'], metrics[f'{prefix}_loss_upper'], 4)}  "
        f"accuracy {metrics[f'{prefix}_accuracy']:.3f}  n={metrics[f'{prefix}_samples']:,} stories"
        for prefix in prefixes
    ]
