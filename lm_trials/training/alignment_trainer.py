"""The Trainers of alignment: trl's `DPOTrainer` and `GRPOTrainer` with exact resumption and evaluation.

Shape suffixes: N = pairs, P = prompts, S = completions of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trl import DPOTrainer, GRPOTrainer
from trl.trainer.utils import use_adapter

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate, interval_text
from lm_trials.evaluation.constraint_scores import over_prompts
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.held_out import HeldOut
from lm_trials.evaluation.losses import Processes, Window, window_sums
from lm_trials.pairs.examples import PromptStore
from lm_trials.rewards.cheats import reward_rows
from lm_trials.training.tuning_trainer import AdapterTrainer

REFERENCE = "ref"  # trl's name of a frozen copy of the initial adapter
GENERATIONS = "generations_{}.safetensors"


def keep_reference(model: Any, initial: bool) -> None:
    """Settle trl's frozen copy of the adapter: kept for an initial one, removed for a new one, and never saved.

    A new adapter changes nothing, so the base is the reference, and a copy would take memory and time.
    """
    if not isinstance(model, PeftModel) or REFERENCE not in model.peft_config:
        return
    if initial:
        model.save_pretrained = partial(model.save_pretrained, selected_adapters=["default"])  # type: ignore[method-assign]
    else:
        model.delete_adapter(REFERENCE)


class PreferenceTuner(AdapterTrainer, DPOTrainer):
    """`trl.DPOTrainer` on tokenized preferences.

    Args:
        eval_store: validation pairs; None or empty for no evaluation.
        max_eval_samples: pairs to evaluate, in the store's order; None for all.
        initial_adapter: whether the adapter is one that was trained before, which is the reference.
        kwargs: `DPOTrainer`'s.
    """

    def __init__(
        self, *, eval_store: PromptStore | None, max_eval_samples: int | None, initial_adapter: bool, **kwargs: Any
    ) -> None:
        if eval_store:
            kwargs["eval_dataset"] = eval_store.rows  # Trainer requires one
        super().__init__(**kwargs)
        keep_reference(self.model, initial_adapter)
        self.eval_store, self.max_eval_samples = eval_store, max_eval_samples
        self._reference_N2: Any = None  # the reference does not change
        self.watch(lambda: self._total_train_tokens, lambda metrics: [preference_line(metrics)])

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Return the data as they are: tokenized by `pairs.examples`, as for generation."""
        return dataset

    def pair_nats(self, reference: bool) -> np.ndarray:
        """Return the (N, 2) nats of the chosen and the rejected completions, float64; every process calls it."""
        assert self.eval_store is not None
        count = min(len(self.eval_store), self.max_eval_samples or len(self.eval_store))
        windows: list[Window] = []
        prompts: list[int] = []  # tokens of each
        for number in range(count):
            prompt, *sides = self.eval_store.tokens(number)
            for side in sides:
                ids_T = np.array(prompt + side)
                windows.append(Window(ids_T[:-1], ids_T[1:], np.full(len(ids_T) - 1, len(prompts))))
                prompts.append(len(prompt))

        def completion(window: Window, nats_T: np.ndarray, correct_T: np.ndarray) -> float:
            return float(nats_T[prompts[int(window.owners_T[0])] - 1 :].sum())

        model: Any = self.accelerator.unwrap_model(self.model)
        adapter: AbstractContextManager[None] = nullcontext()
        if reference and self.ref_model is not None:
            model = self.accelerator.unwrap_model(self.ref_model)
        elif reference:
            adapter = use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None)
        with adapter:
            batch, processes = self.args.per_device_eval_batch_size, self.processes() or Processes()
            return np.array(window_sums(model, windows, batch, processes, completion)).reshape(-1, 2)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on the validation pairs: loss, accuracy and margin of the rewards, with intervals over pairs."""
        if eval_dataset is not None:
            raise ValueError("an alignment evaluates its own validation pairs")
        started = time.perf_counter()
        if self._reference_N2 is None:
            self._reference_N2 = self.pair_nats(reference=True)
        estimates = preference_estimates(self.pair_nats(reference=False), self._reference_N2, self.beta)
        metrics = metrics_of(estimates, metric_key_prefix, len(self._reference_N2))
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 4)
        return self.log_evaluation(metrics, f"{metric_key_prefix}_loss")


def preference_estimates(policy_N2: np.ndarray, reference_N2: np.ndarray, beta: float) -> dict[str, Estimate]:
    """Return trl's metrics of preferences, with intervals over the pairs.

    The loss is DPO's, `-log sigmoid(margin)`, whatever `--loss_type` trains with.

    Args:
        policy_N2: nats of the chosen and the rejected completions by the model.
        reference_N2: by the reference.

    >>> found = preference_estimates(np.array([[1.0, 4.0], [2.0, 2.0]]), np.array([[2.0, 3.0], [2.0, 2.0]]), beta=0.5)
    >>> found["rewards/margins"].estimate, found["rewards/accuracies"].estimate, round(found["loss"].estimate, 4)
    (0.5, 0.5, 0.5032)
    """
    rewards_N2 = beta * (reference_N2 - policy_N2)
    margins_N = rewards_N2[:, 0] - rewards_N2[:, 1]
    values = {
        "loss": (np.logaddexp(0, -margins_N), "nats per pair"),
        "rewards/accuracies": ((margins_N > 0).astype(float), "share of pairs"),
        "rewards/margins": (margins_N, "reward"),
        "rewards/chosen": (rewards_N2[:, 0], "reward"),
        "rewards/rejected": (rewards_N2[:, 1], "reward"),
    }
    estimates = {name: over_prompts(values_N, unit) for name, (values_N, unit) in values.items()}
    return {name: estimate for name, estimate in estimates.items() if estimate}


def metrics_of(estimates: Mapping[str, Estimate], prefix: str, count: int) -> dict[str, float]:
    """Return estimates with their intervals under Trainer's names, and the number of pairs or prompts.

    >>> list(metrics_of({"reward": Estimate(0.5, 0.4, 0.6, 9, "reward")}, "eval", 9))
    ['eval_reward', 'eval_reward_lower', 'eval_reward_upper', 'eval_samples']
    """
    metrics: dict[str, float] = {}
    for name, estimate in estimates.items():
        limits = {"": estimate.estimate, "_lower": estimate.lower, "_upper": estimate.upper}
        metrics |= {f"{prefix}_{name}{end}": value for end, value in limits.items()}
    return {**metrics, f"{prefix}_samples": count}


def _shown(metrics: Mapping[str, float], name: str) -> str:
    limits = interval_text(metrics[f"{name}_lower"], metrics[f"{name}_upper"])
    return f"{metrics[name]:.3f} {limits}"


def preference_line(metrics: Mapping[str, float]) -> str:
    """Return an evaluation of preferences in one line.

    >>> zeros_N2 = np.zeros((2, 2))
    >>> preference_line(metrics_of(preference_estimates(zeros_N2, zeros_N2, 0.1), "eval", 2))
    'loss 0.693 [no interval], accuracy 0.000 [0.000, 0.658], margin 0.000 [no interval], n = 2 pairs'
    """
    names = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    shown = ", ".join(f"{word} {_shown(metrics, f'eval_{name}')}" for name, word in names.items())
    return f"{shown}, n = {int(metrics['eval_samples']):,} pairs"


def reward_line(metrics: Mapping[str, float]) -> str:
    """Return an evaluation of rewards in one line: their sum, each, and the held-out judges.

    >>> estimate = Estimate(0.5, 0.4, 0.6, 9, "reward")
    >>> reward_line(metrics_of({"reward": estimate, "rewards/words/mean": estimate}, "eval", 9))
    'reward 0.500 [0.400, 0.600], words 0.500 [0.400, 0.600], n = 9 prompts'
    """
    names = {name: name.removeprefix("eval_") for name in metrics if f"{name}_lower" in metrics}
    words = {name: word.partition("/")[2].removesuffix("/mean") or word for name, word in names.items()}
    shown = ", ".join(f"{word} {_shown(metrics, name)}" for name, word in words.items())
    return f"{shown}, n = {int(metrics['eval_samples']):,} prompts"


def as_answer(prompt: Any, text: str) -> Any:
    """Return a completion as trl gives it to rewards: to messages a message.

    >>> as_answer("Write.", "A cat."), as_answer([{"role": "user", "content": "Write."}], "A cat.")
    ('A cat.', [{'role': 'assistant', 'content': 'A cat.'}])
    """
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


class RewardTuner(AdapterTrainer, GRPOTrainer):
    """`trl.GRPOTrainer` on tokenized prompts.

    The completions that later updates read are saved with a checkpoint, so that it may be anywhere among them.

    Args:
        eval_store: validation prompts; None or empty for no evaluation.
        eval_rows: their rows, with the columns that rewards read.
        max_eval_samples: prompts to evaluate, in the store's order; None for all.
        held_out: judges beside the rewards.
        ends: ids that end a completion.
        initial_adapter: whether the adapter is one that was trained before, which is the reference.
        kwargs: `GRPOTrainer`'s; `reward_funcs` are `rewards.functions.Reward`.
    """

    args: Any
    reward_funcs: Any
    _logs: dict[str, Any]
    _buffered_inputs: Any

    def __init__(
        self,
        *,
        eval_store: PromptStore | None,
        eval_rows: Dataset,
        max_eval_samples: int | None,
        held_out: HeldOut,
        ends: Sequence[int],
        initial_adapter: bool,
        **kwargs: Any,
    ) -> None:
        kwargs["model"].generation_config.eos_token_id = list(ends)  # trl lets each of them end a completion
        if eval_store:
            kwargs["eval_dataset"] = eval_rows
        super().__init__(**kwargs)
        keep_reference(self.model, initial_adapter)
        self.eval_store, self.eval_rows, self.max_eval_samples = eval_store, eval_rows, max_eval_samples
        self.held_out, self.ends = held_out, ends
        self._prompt_ids: list[list[int]] = []
        self.watch(lambda: self.state.num_input_tokens_seen, lambda metrics: [reward_line(metrics)])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample and score; a UsageError names the update whose completions a reward cannot score."""
        self._prompt_ids = [row["prompt_ids"] for row in inputs]
        rows = [{name: value for name, value in row.items() if name != "prompt_ids"} for row in inputs]
        try:
            return super()._generate_and_score_completions(rows)
        except UsageError as error:
            raise UsageError(f"update {self.state.global_step + 1:,}: {error}") from None

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the ids of `pairs.layouts`; trl would add a tokenizer's own marks, or apply its chat template."""
        return self._prompt_ids, None, {}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate completions of the validation prompts: rewards and held-out judges, with intervals over prompts.

        A prompt's completions are drawn from `--seed` and its name, so they are the same in any batch, and the random
        state of the training stays as it is.
        """
        if eval_dataset is not None:
            raise ValueError("an alignment evaluates its own validation prompts")
        started = time.perf_counter()
        rows, texts_PS, ids_PS = self.completions()
        try:
            found = reward_rows(self.reward_funcs, rows, texts_PS, ids_PS, self.held_out, self.args.seed)
        except UsageError as error:
            raise UsageError(f"evaluation after update {self.state.global_step:,}: {error}") from None
        names = {"reward": "rewards/{}/mean", "sum": "reward", "judge": "judges/{}"}
        estimates = {
            names[row["role"]].format(row["metric"]): Estimate(
                **{name: row[name] for name in ("estimate", "lower", "upper", "n", "unit")}
            )
            for row in found
        }
        # No sum if no reward applies to any prompt.
        estimates = {name: estimates[name] for name in ("reward", *estimates) if name in estimates}
        metrics = metrics_of(estimates, metric_key_prefix, len(rows))
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 4)
        return self.log_evaluation(metrics, f"{metric_key_prefix}_samples")

    def completions(self) -> tuple[list[dict[str, Any]], list[list[Any]], list[list[list[int]]]]:
        """Return the rows of the validation prompts with P x S completions and their ids, in every process."""
        assert self.eval_store is not None
        args, tokenizer = self.args, self.processing_class
        count = min(len(self.eval_store), self.max_eval_samples or len(self.eval_store))
        samples, processes = args.num_generations_eval or 1, self.processes() or Processes()
        asked = [(number, sample) for number in range(count) for sample in range(samples)]
        # A sharded model is gathered from all processes in each forward pass, so then every process writes all.
        shared = self.accelerator.distributed_type in ("NO", "MULTI_CPU", "MULTI_GPU")
        own = asked[processes.index :: processes.count] if shared else asked
        prompts = {number: self.eval_store.tokens(number).prompt_ids for number, _ in own}
        limit = args.max_completion_length
        model: Any = self.accelerator.unwrap_model(self.model)
        written = write_stories(
            model,
            tokenizer,
            [prompts[number] for number, _ in own],
            limit,
            *(args.temperature, args.top_k, args.top_p, args.seed, args.per_device_eval_batch_size),
            keys=[f"{self.eval_store.record_id(number)}:{sample}" for number, sample in own],
            more_ends=self.ends,
            by_length=True,
        )
        found = dict(
            processes.gather(list(zip(own, written, strict=True))) if shared else zip(own, written, strict=True)
        )
        rows = [self.eval_rows[number] for number in range(count)]
        # As in training, with the id that ended it.
        ids_PS = [
            [[*ids, self.ends[0]] if len(ids := found[number, sample]) < limit else ids for sample in range(samples)]
            for number in range(count)
        ]
        texts_PS: list[list[Any]] = []
        for row, of in zip(rows, ids_PS, strict=True):
            texts = tokenizer.batch_decode(of, skip_special_tokens=True)
            texts_PS.append([as_answer(row["prompt"], text) for text in texts])
        return rows, texts_PS, ids_PS

    def progress(self) -> dict[str, Any]:
        """Return this process's sums, trl's place among its batches, and what `--log_completions` shows next."""
        state = {"step": self._step, "entropy": [self.entropy_coef, self._last_world_entropy]}
        if self.log_completions:
            of = {
                name: {key: list(values) for key, values in self._logs[name].items()} for name in ("rewards", "extra")
            }
            state["logs"] = {name: list(self._logs[name]) for name in ("prompt", "completion", "advantages")} | of
        return {**super().progress(), **state}

    def restore_progress(self, parts: list[dict[str, Any]]) -> None:
        """Restore what `progress` returned."""
        super().restore_progress(parts)
        self._step = parts[0]["step"]
        self.entropy_coef, self._last_world_entropy = parts[0]["entropy"]
        for name, values in parts[0].get("logs", {}).items():
            if isinstance(values, dict):
                for key, of in values.items():
                    self._logs[name][key].extend(of)
            else:
                self._logs[name].extend(values)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save this process's random state, and the completions that later updates read."""
        super()._save_rng_state(output_dir)
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            tensors = {
                f"{place}.{name}": tensor.detach().cpu().clone().contiguous()
                for place, batch in enumerate(self._buffered_inputs)
                for name, tensor in batch.items()
            }
            save_file(tensors, Path(output_dir) / GENERATIONS.format(self.args.process_index))

    def load_progress(self, checkpoint: Path) -> None:
        """Restore this process's `progress`, and the completions that later updates read.

        Raises:
            UsageError: for another number of processes, each of which samples for itself.
        """
        written = len(list(checkpoint.glob("progress_*.json")))
        if written != self.args.world_size:
            raise UsageError(
                f"{checkpoint} was written by {written} processes, each of which samples completions, and "
                f"{self.args.world_size} resume; start as many processes as before"
            )
        super().load_progress(checkpoint)
        file = checkpoint / GENERATIONS.format(self.args.process_index)
        if file.is_file():
            batches: list[dict[str, Any]] = [{} for _ in range(self.args.steps_per_generation)]
            for key, tensor in load_file(file).items():
                place, _, name = key.partition(".")
                batches[int(place)][name] = tensor.to(self.args.device)
            self._buffered_inputs = batches

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with a folder for `--log_completions`, which trl makes before the run's folder is emptied."""
        if self.log_completions:
            (Path(self.args.output_dir) / "completions").mkdir(parents=True, exist_ok=True)
        super().log(logs, start_time)
