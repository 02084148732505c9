"""Exact resumption: a run killed at any time and resumed ends with the same weights and log, bit for bit.

Trainer restores weights, optimizer, schedule and random state.  Added here are the loss summed since the last log line,
atomic checkpoints (`checkpoints`), and a stop with a checkpoint on SIGTERM or Ctrl-C.  Runs killed at 20 random times
ended with the same weights and log 20 times, cached and streamed.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import ExportableState, ProgressCallback

from lm_trials.console import UsageError, note
from lm_trials.evaluation.losses import NotFiniteError, Processes
from lm_trials.files import finite
from lm_trials.models.reference import checkpoints, load_model, resolve_model
from lm_trials.models.shapes import not_finite
from lm_trials.stories.shards import first_line
from lm_trials.training.checkpoints import STATE_FILE, UNFINISHED, remove, rotate, seal, sealed_facts, unfinished_folder
from lm_trials.training.hub import HubPush
from lm_trials.training.launch import check_saved
from lm_trials.training.snapshots import Snapshots
from lm_trials.training.throughput import Clock, RunProgress

PROGRESS = "progress_{}.json"
# Parts of torch's RuntimeError messages for a file that cannot be written.
UNWRITTEN = ("PytorchStreamWriter", "inline_container")


class ExactResume(HubPush):
    """A mixin for Trainers with exact resumption.

    Attributes:
        run_identity: `checkpoints.run_identity` of the run, written into each checkpoint.
        scheduled: False for a checkpoint after a signal or of a ladder, which `--save_steps` does not schedule.
        snapshots: what is computed and saved with each checkpoint.
    """

    run_identity: str = ""
    scheduled: bool = True
    snapshots: Snapshots | None = None
    clock: Clock
    _evaluated: tuple[int, dict[str, float]] = (-1, {})
    _diverged: Any = 0  # the first update whose loss or gradient was not finite: a number on the device

    def watch(self, count: Callable[[], int], lines: Callable[[dict[str, float]], list[str]]) -> None:
        """Measure the speed by a count, and show lines for each evaluation above the progress bar.

        Raises:
            UsageError: as `launch.check_saved`.
        """
        check_saved(self.accelerator.state)
        self.clock = Clock(count)
        # Tokens per second exclude evaluations and, after a resume, the updates before it; Trainer's own speed counts
        # both.
        self.add_callback(self.clock)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(RunProgress(lines))

    def processes(self) -> Processes | None:
        """Return how to share an evaluation among the processes; None for one process."""
        several = self.args.world_size > 1
        return Processes(self.args.process_index, self.args.world_size, gather_object) if several else None

    def evaluated(self, metrics: dict[str, float]) -> dict[str, float]:
        """Call the callbacks of an evaluation, and return its metrics."""
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock.restart()  # training speed excludes evaluations
        self._evaluated = (self.state.global_step, metrics)
        return metrics

    def final_metrics(self) -> dict[str, float]:
        """Return the current model's metrics, evaluating it unless the last update did."""
        step, metrics = self._evaluated
        # Not with --load_best_model_at_end: the metrics would be those of the last update, not of the loaded model.
        fresh = metrics and step == self.state.global_step and not self.args.load_best_model_at_end
        return metrics if fresh else self.evaluate()

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write as JSON, which has no NaN; an interval that does not exist is null."""
        super().save_metrics(split, finite(metrics), combined)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient norm, and remember the first update at which it or the loss is not finite."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # float16's scaler skips updates whose gradient overflows, which is no divergence.
        norm = 0.0 if grad_norm is None or self.accelerator.scaler is not None else grad_norm
        finite = torch.isfinite(self._tr_loss + (norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        # On the device: reading it at each update would wait for the GPU, which Trainer does at log lines only.
        self._diverged = torch.where(finite | (self._diverged > 0), self._diverged, self.state.global_step + 1)
        return grad_norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save what is finite."""
        control = self.control
        used = control.should_evaluate or control.should_save or control.should_training_stop
        if used or control.should_log:
            self.check_finite(weights=used)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def check_finite(self, weights: bool) -> None:
        """Stop a run whose loss, gradient or (if asked) weights are nan or infinite, in all processes together.

        Raises:
            UsageError: naming the update, the last checkpoint, and the settings to change.
        """
        update = self.state.global_step if weights and not_finite(self.model) else 0
        found = torch.as_tensor([self._diverged, update], device=self.args.device)
        if updates := [number for number in self.accelerator.gather(found).tolist() if number]:
            raise self._diverged_at(min(updates))

    def _diverged_at(self, update: int) -> UsageError:
        saved = [str(folder) for folder in checkpoints(Path(self.args.output_dir))]
        where = f"the last checkpoint with finite weights is {saved[-1]}" if saved else "no checkpoint was saved before"
        half = [name for name in ("fp16", "bf16") if getattr(self.args, name)]
        return UsageError(
            f"training diverged at update {update:,} (the loss, its gradient or a weight is nan or infinite); {where}. "
            f"Lower --learning_rate ({self.args.learning_rate:g}) or raise --warmup_steps, set --max_grad_norm to 1 or "
            f"less (now {self.args.max_grad_norm:g}){''.join(f', remove --{name}' for name in half)}, and train again "
            "with --overwrite_output_dir"
        )

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate during training."""
        try:
            return super()._evaluate(*args, **kwargs)
        except NotFiniteError:
            raise self._diverged_at(self.state.global_step) from None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, atomically; a UsageError for a full disk leaves earlier checkpoints unchanged."""
        step, run = self.state.global_step, Path(self.args.output_dir)
        place, final = unfinished_folder(run, step), run / f"checkpoint-{step}"
        self.store_flos()
        with _atomically(place, run):
            self.save_model(str(place), _internal_call=True)
            # Without these a run cannot be resumed; `resumable` records it, so that a resume is refused and not
            # restarted.
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(place))
                self._save_scaler(str(place))
                self._save_rng_state(str(place))
            best = self.state.best_global_step
            if best and (self.scheduled if best == step else _was_scheduled(run / f"checkpoint-{best}")):
                self.state.best_model_checkpoint = str(run / f"checkpoint-{best}")
            if self.args.should_save:
                self._save_state(place)
            if self.snapshots and self.args.should_save:
                self.snapshots.write(place)
            self.accelerator.wait_for_everyone()  # until every process has written its files
            if self.args.should_save:
                earlier = [n for path in checkpoints(run) if (n := int(path.name.removeprefix("checkpoint-"))) < step]
                facts = {
                    "run": self.run_identity,
                    "global_step": step,
                    "since": max(earlier, default=None),  # the last checkpoint, for `records_between`
                    "world_size": self.args.world_size,
                    "resumable": not self.args.save_only_model,
                    "scheduled": self.scheduled,  # else the best model is never taken from it
                    "batches": [self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps],
                }
                seal(place, final, facts)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate(run, self.args.save_total_limit, [self.state.best_model_checkpoint])

    def _save_state(self, place: Path) -> None:
        """Write Trainer's state with that of its callbacks, as `Trainer._save_checkpoint` does."""
        states: Any = self.state.stateful_callbacks  # annotated as a list; a dictionary
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, state = type(callback).__name__, callback.state()
                if isinstance(states[name], list):
                    states[name].append(state)
                else:
                    states[name] = state
        self.state.save_to_json(str(place / STATE_FILE))

    def progress(self) -> dict[str, Any]:
        """Return this process's sums since the last log line; subclasses add theirs."""
        mps = self.args.device.type == "mps"
        return {
            # Trainer drops the loss summed since the last log line, so the first line after a resume would be too
            # low.
            "loss_since_log": self._tr_loss.item(),  # float32, exact as a JSON number
            "loss_logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            # Trainer saves the random state of every device but this one: a resumed run would draw other dropout masks.
            **({"mps_random": torch.mps.get_rng_state().tolist()} if mps else {}),
        }

    def restore_progress(self, parts: list[dict[str, Any]]) -> None:
        """Restore what `progress` returned, of this process or, if the process count has changed, of all."""
        # Losses of processes are averaged when logged, so their mean stands for all after a change of the process
        # count.
        mean = sum(part["loss_since_log"] for part in parts) / len(parts)
        self._tr_loss = torch.tensor(mean, dtype=self._tr_loss.dtype, device=self.args.device)
        self._total_loss_scalar = parts[0]["loss_logged"]
        self._globalstep_last_logged = parts[0]["last_logged_step"]
        if self.args.device.type == "mps" and "mps_random" in parts[0]:  # else written on another device
            torch.mps.set_rng_state(torch.tensor(parts[0]["mps_random"], dtype=torch.uint8))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save with `use_cache` on, for generation; Trainer turns it off in the configuration for training."""
        config = self.accelerator.unwrap_model(self.model).config
        # Training switches the key-value cache off; a saved model without it would generate in quadratic time.
        config.use_cache = True
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = self.args.use_cache

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint by the names of the model's modules.

        GPT-NeoX, Mixtral and others are saved under other names, and Trainer would keep such weights as they are: a
        resumed GPT-NeoX had the output head of its base.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # their files have the names of modules
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target = self.accelerator.unwrap_model(self.model if model is None else model)
        target.load_state_dict(load_model(resolve_model(resume_from_checkpoint)).state_dict())

    def _load_best_model(self) -> None:
        """Load the best model as a checkpoint is loaded."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        """Save this process's random state and `progress`."""
        super()._save_rng_state(output_dir)
        path = Path(output_dir) / PROGRESS.format(self.args.process_index)
        path.write_text(json.dumps(self.progress()) + "\n")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from a checkpoint with its `progress` too."""
        callback = _RestoreProgress(self, resume_from_checkpoint)
        self.add_callback(callback)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.remove_callback(callback)

    def load_progress(self, checkpoint: Path) -> None:
        """Restore this process's `progress` from a checkpoint."""
        files = sorted(checkpoint.glob(PROGRESS.format("*")))
        if len(files) == self.args.world_size:
            files = [checkpoint / PROGRESS.format(self.args.process_index)]
        else:
            note(
                f"note: {checkpoint} was written by {len(files)} processes, and {self.args.world_size} resume: the "
                "same examples, losses within rounding, other dropout masks"
            )
        batches = [self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps]
        if len(files) == 1 and sealed_facts(checkpoint).get("batches", batches) != batches:
            note(
                f"note: {checkpoint} was written with other batches of the same product: the same examples, losses "
                "within rounding, other dropout masks"
            )
        self.restore_progress([json.loads(file.read_text()) for file in files])

    def is_logged(self, name: str) -> bool:
        """Return whether the log already has this metric for this update."""
        return any(row.get("step") == self.state.global_step and name in row for row in self.state.log_history)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the run's mean loss at its end includes the updates before a resume."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)


def _was_scheduled(checkpoint: Path) -> bool:
    return checkpoint.is_dir() and sealed_facts(checkpoint).get("scheduled", True)


class _RestoreProgress(TrainerCallback):
    """Restores `progress` when training begins, where Trainer resets it.

    At the first update, where Trainer restores the random state, a run killed after its last one would log a loss of 0.
    """

    def __init__(self, trainer: ExactResume, checkpoint: str | bool | None) -> None:
        self.trainer = trainer
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoint:
            self.trainer.load_progress(Path(str(self.checkpoint)))


@contextmanager
def _atomically(place: Path, run: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in UNWRITTEN):
            raise  # any other error of torch
        remains = [path.name for path in checkpoints(run)]
        if place.exists():
            remove(place)
        resumes = f", which resumes from {remains[-1]}" if remains else ""
        raise UsageError(
            f"{run / place.name.removesuffix(UNFINISHED)[1:]} cannot be written ({_reason(error, run)}); free disk "
            f"space and run the same command again{resumes}"
        ) from None


def _reason(error: Exception, run: Path) -> str:
    if shutil.disk_usage(run).free < 1 << 20:
        return "no space left on the disk"
    if isinstance(error, RuntimeError):
        return "a file was truncated"  # torch's message names a line of its own source
    return getattr(error, "strerror", None) or first_line(error)


class Interruption(TrainerCallback):
    """On SIGTERM or Ctrl-C, stops all processes after the current update, with a checkpoint; the second stops at once.

    Use it as a context manager around `train`, and as a callback.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, trainer: ExactResume) -> None:
        self.trainer = trainer
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # others cannot set signal handlers
            # What is ignored stays ignored: a trial's job gets Ctrl-C from its engine, as SIGTERM.
            heard = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # The second signal stops at once: a checkpoint of a large model can take longer than a scheduler's grace
            # period.
            raise KeyboardInterrupt
        self.received = number
        note(f"\n{signal.Signals(number).name}: stopping after this update, with a checkpoint; again: stop at once")

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Request a checkpoint and the end if any process has received a signal."""
        if args.world_size > 1:
            number = torch.tensor(self.received or 0, device=args.device)
            # A signal may reach one process only; all must stop after the same update, or the next all-reduce waits
            # forever.
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.received = int(number) or None
        if self.received is not None:
            self.trainer.scheduled = self.trainer.scheduled and control.should_save
            control.should_save = control.should_training_stop = True
        return control

    def save(self) -> None:
        """Save if Trainer has not: with `--save_strategy best` an evaluation resets the request."""
        step = self.trainer.state.global_step
        if not (Path(self.trainer.args.output_dir) / f"checkpoint-{step}").is_dir():
            self.trainer._save_checkpoint(self.trainer.model, None)
