"""The Trainer that counts every token: stock `transformers.Trainer`, with evaluation by sums and logs by tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import default_data_collator
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

from lm_trials.console import UsageError
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.losses import Processes, story_losses
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
from lm_trials.training.throughput import Clock, RunProgress, flops_per_token, peak_flops


class StoryTrainer(ExactResume):
    """`transformers.Trainer` on blocks of stories.

    `evaluate` is exact: Trainer's own loss is a mean of batch means and moves with the batch size, and
    called before `train` under DDP it leaves the model unwrapped, so that the processes train apart.
    This one sums over tokens, in every process alike, and never prepares the model.

    Args:
        eval_block_size: longest window of an evaluation, in tokens.
        max_eval_samples: validation stories evaluated, in the store's order; None for all.
        num_sampled_stories: stories that the model writes after each evaluation, into TensorBoard.
        sample_tokens: most tokens of such a story.
        named_eval_datasets: further stores, evaluated after `eval_dataset`, as `eval_<name>_loss` and so on.
        generations: what the model writes for prompts of sets, and how often; see `callbacks.GenerationPlan`.
        part_names: of a mixture, the names of its parts, whose shares of the tokens are logged.
        separator: what stands before each story, and so before one that the model writes.
        kwargs: `Trainer`'s own; `eval_dataset` is a `TokenStore` or `SetStore`.
    """

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
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, data_collator=default_data_collator, **kwargs)
        self.eval_block_size = eval_block_size
        self.max_eval_samples = max_eval_samples
        self.num_sampled_stories = num_sampled_stories
        self.sample_tokens = min(sample_tokens, eval_block_size - 1)
        self.named_eval_datasets = named_eval_datasets or {}
        self.generations = generations
        self.part_names = tuple(part_names)
        self.separator = separator
        self.part_tokens_P = np.zeros(len(part_names), dtype=np.int64)  # of this process
        self.clock = Clock(lambda: self.state.global_step)
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self.add_callback(self.clock)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(RunProgress(loss_lines))

    def evaluate(
        self, eval_dataset: Store | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on whole stories; returns `eval_loss`, `eval_perplexity`, ... with their intervals.

        Without `eval_dataset` the Trainer's own and all named ones are evaluated, and stories are written.
        """
        if eval_dataset is not None:
            return self._evaluate_one(eval_dataset, metric_key_prefix)
        if self.eval_dataset is None:
            raise UsageError("there is nothing to evaluate on; give a data set with a validation split")
        metrics = self._evaluate_one(self.eval_dataset, metric_key_prefix)
        for name, store in self.named_eval_datasets.items():
            metrics |= self._evaluate_one(store, f"{metric_key_prefix}_{name}")
        self.log_samples()
        metrics |= self.log_generations(metric_key_prefix)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock.restart()  # training speed excludes evaluations
        self._evaluated = (self.state.global_step, metrics)
        return metrics

    def _evaluate_one(self, store: Store, prefix: str) -> dict[str, float]:
        started = time.perf_counter()
        summary = LossSummary()
        processes = Processes(self.args.process_index, self.args.world_size, gather_object)
        # The model itself, not its DDP wrapper: an evaluation takes no part in gradient synchronisation.
        for story in story_losses(
            self.accelerator.unwrap_model(self.model),
            store_documents(store, self.max_eval_samples),
            self.eval_block_size,
            batch_size=self.args.per_device_eval_batch_size,
            processes=processes if self.args.world_size > 1 else None,
        ):
            summary.add(story)
        metrics = summary.metrics(prefix)
        seconds = time.perf_counter() - started
        metrics[f"{prefix}_runtime"] = round(seconds, 4)
        metrics[f"{prefix}_tokens_per_second"] = metrics[f"{prefix}_tokens"] / seconds
        if not self.is_logged(f"{prefix}_loss"):  # a resumed run knows it from its last checkpoint
            self.log(metrics)
        return metrics

    def final_metrics(self) -> dict[str, float]:
        """Return the metrics of the model as it is now, evaluating it unless the last step did."""
        step, metrics = self._evaluated
        return metrics if metrics and step == self.state.global_step else self.evaluate()

    def may_write(self) -> bool:
        """Say whether this process holds a whole model and is the one that writes."""
        whole = self.accelerator.distributed_type in ("NO", "MULTI_CPU", "MULTI_GPU")
        return whole and self.is_world_process_zero()

    def log_generations(self, prefix: str) -> dict[str, float]:
        """Let the model write for prompts of the sets where this evaluation is one of those; returns feature shares."""
        plan = self.generations
        evaluations = {row["step"] for row in self.state.log_history if f"{prefix}_loss" in row}  # kept by a resume
        if plan is None or not plan.every or (len(evaluations) - 1) % plan.every or not self.may_write():
            return {}
        step = self.state.global_step
        model = self.accelerator.unwrap_model(self.model)
        written = write_tables(model, self.processing_class, plan, Path(self.args.output_dir) / GENERATIONS, step)
        metrics = feature_metrics(written, prefix)
        self.log(metrics)
        for name, generations in written.items():
            self.write_text(f"eval/{GENERATIONS}_{name}", as_markdown(generations))
        if "wandb" in self.args.report_to:
            report_to_wandb(written, step)
        return metrics

    def write_text(self, tag: str, text: str) -> None:
        """Write a text into TensorBoard, where it is on; `log` would keep it in every checkpoint's state too."""
        for callback in self.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if isinstance(callback, TensorBoardCallback) and writer is not None:
                writer.add_text(tag, text, self.state.global_step)

    def log_samples(self) -> None:
        """Log stories that the model writes, the same draws at every step, so that they can be compared."""
        if not self.num_sampled_stories or not self.may_write():
            return
        opening = opening_of(self.processing_class, self.separator)
        stories = write_stories(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            [opening] * self.num_sampled_stories,
            max_new_tokens=self.sample_tokens,
            temperature=0.8,
        )
        texts = self.processing_class.batch_decode(stories, skip_special_tokens=True)
        self.log({f"eval_story_{number}": text for number, text in enumerate(texts)})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen and tokens per second to each training log, and MFU where the device's peak is known."""
        if isinstance(self.train_dataset, RunBlocks) and "loss" in logs:
            block_size = self.train_dataset.block_size
            tokens_per_step = self.get_total_train_batch_size(self.args) * block_size
            per_second = self.clock.per_second() * tokens_per_step
            logs["tokens_seen"] = self.state.global_step * tokens_per_step
            logs["tokens_per_second"] = per_second
            logs |= {f"share_{name}": share for name, share in self.part_shares().items()}
            peak = peak_flops(self.args.device) * self.args.world_size
            if peak:
                logs["mfu"] = per_second * flops_per_token(self.model, block_size) / peak
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the count of the parts' tokens, which Trainer would drop from each batch as no argument of the model."""
        super()._set_signature_columns_if_needed()
        if "part_tokens" not in self._signature_columns:
            self._signature_columns.append("part_tokens")

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Take the batches of one update, and from each the count of its parts' tokens, which no model knows."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            if "part_tokens" in batch:
                self.part_tokens_P += batch.pop("part_tokens").sum(dim=0).cpu().numpy()
        return batches, num_items

    def part_shares(self) -> dict[str, float]:
        """Return the share of the tokens so far that each part of a mixture has had, over all processes."""
        if not self.part_names:
            return {}
        tokens_P = self.accelerator.reduce(torch.from_numpy(self.part_tokens_P).to(self.args.device)).cpu().numpy()
        return dict(zip(self.part_names, (tokens_P / max(tokens_P.sum(), 1)).tolist(), strict=True))

    def progress(self) -> dict[str, Any]:
        """Return what this process has summed up, the tokens of each part with it."""
        return {**super().progress(), "part_tokens": self.part_tokens_P.tolist()}

    def restore_progress(self, parts: list[dict[str, Any]]) -> None:
        """Take up what `progress` returned."""
        super().restore_progress(parts)
        self.part_tokens_P = np.zeros_like(self.part_tokens_P)
        if len(parts) == 1 or self.args.process_index == 0:  # a sum over all processes, kept by the first
            self.part_tokens_P += np.sum([part["part_tokens"] for part in parts], axis=0, dtype=np.int64)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; an evaluation of the last step says nothing about the best model, if that is loaded at the end."""
        result = super().train(*args, **kwargs)
        if self.args.load_best_model_at_end:
            self._evaluated = (-1, {})
        return result


def loss_lines(metrics: dict[str, float]) -> list[str]:
    """Return a line for each evaluated data set: loss with its interval, perplexity, accuracy, n."""
    prefixes = [key.removesuffix("_loss") for key in metrics if key.endswith("_loss")]
    return [
        f"{prefix} loss {metrics[f'{prefix}_loss']:.4f} "
        f"[{metrics[f'{prefix}_loss_lower']:.4f}, {metrics[f'{prefix}_loss_upper']:.4f}]  "
        f"perplexity {metrics[f'{prefix}_perplexity']:.2f}  accuracy {metrics[f'{prefix}_accuracy']:.3f}  "
        f"n={metrics[f'{prefix}_samples']:,} stories"
        for prefix in prefixes
    ]
